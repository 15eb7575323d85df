"""Graph passes: each a ``torch.fx`` ``PassBase`` in a file of its own, returning ``PassResult``."""
