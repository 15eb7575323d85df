"""Int8: post-training quantisation and quantisation-aware training, on torchao's PT2E and XNNPACK's operator set.

``quantize`` calibrates a trained network and rounds it. What comes out is an ordinary ``torch.fx.GraphModule``: ATen
operations between quantise and dequantise ones, weights in int8 with one scale a channel. It runs as it is,
``torch.export`` exports it, and ExecuTorch lowers it to int8 kernels. ``FakeQuantized`` trains a network as if it were
int8 already, and converts it to the same.

backend        the optional packages behind it
lowering       a module as a functional ATen graph, with batch norms inside the weights (folding)
quantizer      which values become int8
post_training  observe a few batches, then round
aware          train with rounded weights and activations
conversion     from observed ranges to int8
parts          the int8 network of a student that is run in parts
"""

from redistill.errors import QuantizationError
from redistill.quantization.aware import FakeQuantized
from redistill.quantization.post_training import quantize

__all__ = ["FakeQuantized", "QuantizationError", "quantize"]
