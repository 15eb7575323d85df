"""The deployed form: a graph that is trained as one thing and runs as another keeps the other in its ``meta``."""

from __future__ import annotations

from torch.fx import GraphModule

from redistill.tracing.meta import Meta


def deployed_form(graph_module: GraphModule) -> GraphModule:
    """The graph that inference runs: that kept in ``meta["deployed"]``, or the graph itself."""
    found = graph_module.meta.get(Meta.DEPLOYED, graph_module)
    assert isinstance(found, GraphModule)
    return found


def share_tensors(form: GraphModule, owner: GraphModule) -> None:
    """Let ``form``, over the modules of ``owner``, have its other tensors too, so that no move or load parts them.

    The modules that hold others are made anew for every graph; their tables of tensors become the owner's own.
    """
    parts = dict(owner.named_modules(remove_duplicate=False))
    for path, part in form.named_modules(remove_duplicate=False):
        twin = parts.get(path)
        if twin is not None and twin is not part:
            part._parameters, part._buffers = twin._parameters, twin._buffers
