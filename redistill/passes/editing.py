"""Editing: other modules in the place of a graph's own, and nodes after a node that take over its users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from redistill.tracing.outputs import writes_over

CARRIES = "carries"  # key in node.meta: the node whose map this one holds, enlarged or cropped


class GraphEditor:
    """Changes what single nodes of a graph do; other calls of the same module keep theirs."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.calls: dict[str, int] = {}
        for node in graph_module.graph.find_nodes(op="call_module"):
            self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1

    def module(self, node: Node) -> nn.Module | None:
        """The module that the node calls, if it calls one."""
        return self.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def set_module(self, node: Node, module: nn.Module) -> None:
        """Put ``module`` in place of the node's; beside it, if other nodes call the old one."""
        if node.op != "call_module":
            path = self._free_path(f"{node.name}_on_the_grid")
            node.op, node.target, node.args, node.kwargs = "call_module", path, (node.all_input_nodes[0],), {}
            self.graph_module.add_submodule(path, module)
            return
        path = str(node.target)
        if self.calls.get(path, 0) > 1:
            self.calls[path] -= 1
            path = self._free_path(f"{path}_at_{node.name}")
            node.target = path
        self.graph_module.set_submodule(path, module)

    def leave_out(self, node: Node) -> None:
        """Let the node hand on what it reads; a copy, where what follows would write over a map that others read."""
        source = node.all_input_nodes[0]
        if len(source.users) > 1 and any(writes_over(user, node) for user in node.users):
            node.op, node.target, node.args, node.kwargs = "call_method", "clone", (source,), {}
        else:
            self.set_module(node, nn.Identity())

    def enlarge(self, node: Node, name: str, enlarging: nn.Module) -> Node:
        """Let ``enlarging`` run after the node, as the upsampling of ``name``."""
        path = self._free_path(f"{name}_upsampling")
        self.graph_module.add_submodule(path, enlarging)
        return self._append(node, lambda graph: graph.call_module(path, (node,)))

    def crop(self, node: Node, excess: Sequence[int]) -> Node:
        """Leave out so many cells at the end of each side."""
        if not any(excess):
            return node
        index: Any = (..., *(slice(None, -e or None) for e in excess))
        return self._append(node, lambda graph: graph.call_function(getitem, (node, index)))

    def _append(self, node: Node, create: Callable[[Graph], Node]) -> Node:
        """Insert a node after ``node`` that takes over its users."""
        with node.graph.inserting_after(node):
            successor = create(node.graph)
        successor.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
        successor.meta[CARRIES] = node.meta.get(CARRIES, node.name)
        node.replace_all_uses_with(successor, delete_user_cb=lambda user: user is not successor)
        return successor

    def _free_path(self, path: str) -> str:
        while path in dict(self.graph_module.named_modules()):
            path += "_"
        return path


def carriers(graph_module: GraphModule) -> dict[str, Node]:
    """Where the map of each node stands: at the node itself, or at the last one that enlarges or crops it."""
    return {node.meta.get(CARRIES, node.name): node for node in graph_module.graph.nodes}
