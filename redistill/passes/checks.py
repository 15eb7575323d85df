"""Checks that several passes make before they run."""

from __future__ import annotations

from torch.fx import GraphModule

from redistill.errors import PassError


def require_shapes(graph_module: GraphModule, name: str) -> None:
    """Check that the shapes of the graph's inputs are written into ``node.meta``.

    Raises:
        PassError: they are not; ``name`` is the pass that needs them.
    """
    unknown = [n.name for n in graph_module.graph.find_nodes(op="placeholder") if "shape" not in n.meta]
    if unknown:
        raise PassError(f"{name}: the shape of the input {', '.join(unknown)} is not known; set node.meta['shape']")
