"""Reorder: put the operations into the order of least peak memory."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.memory.conventions import Convention, find_convention
from redistill.memory.order import best_order
from redistill.memory.recording import record_graph
from redistill.passes.checks import require_shapes
from redistill.tracing.guards import is_guard_only
from redistill.tracing.meta import Meta


class ReorderPass(PassBase):
    """Executes the best order found under ``convention``; what is computed stays the same.

    Example inputs are shaped as the placeholders' ``meta["shape"]`` and ``meta["dtype"]`` say.
    """

    def __init__(self, convention: str | Convention = "deploy") -> None:
        super().__init__()
        self.convention = find_convention(convention)

    def requires(self, graph_module: GraphModule) -> None:
        """Check that the inputs' shapes are known."""
        require_shapes(graph_module, "reorder")

    def ensures(self, graph_module: GraphModule) -> None:
        """Check that every value is there before it is read."""
        graph_module.graph.lint()

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        inputs = [torch.empty(n.meta[Meta.SHAPE], dtype=n.meta.get(Meta.DTYPE)) for n in placeholders]
        record = record_graph(graph_module, inputs)
        order = best_order(record, self.convention)
        names = [record.operations[i].node for i in order.positions]
        if order.positions == tuple(range(len(names))):
            return PassResult(graph_module, False)
        _arrange(graph_module, names)
        graph_module.recompile()
        return PassResult(graph_module, True)


def _arrange(graph_module: GraphModule, names: list[str]) -> None:
    """Move the named nodes into that order; what exists only for guards follows as soon as its inputs are there."""
    nodes = {n.name: n for n in graph_module.graph.nodes}
    guards = [n for n in graph_module.graph.nodes if is_guard_only(n)]
    placed: set[Node] = set()
    last: Node | None = None
    for name in names:
        for node in (nodes[name], *guards):
            if node in placed or node.op == "output" or not placed.issuperset(node.all_input_nodes):
                continue
            if last is not None:
                last.append(node)
            placed.add(node)
            last = node
