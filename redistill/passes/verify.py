"""Verify: a rewritten graph runs, its control flow is still the right one, and its outputs have the shapes they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PlanError
from redistill.memory.recording import GraphRecord, record_graph
from redistill.tracing.guards import guards_hold


def output_shapes(graph_module: GraphModule, record: GraphRecord) -> Any:
    """The shapes of what a graph returned: its last node's, whatever its name beside the network's own."""
    return record.values[next(iter(reversed(graph_module.graph.nodes))).name]


class VerifyPass(PassBase):
    """Runs the graph on shapes alone and changes nothing.

    Args:
        inputs: example inputs; only their shapes and types matter.
        output: the shapes that the output must have, as :func:`output_shapes` gives them.
        dtype: the type that activations are counted in.

    Attributes:
        record: the run.
    """

    record: GraphRecord

    def __init__(self, inputs: Sequence[Tensor], output: Any, dtype: str | None = None) -> None:
        super().__init__()
        self.inputs, self.output, self.dtype = inputs, output, dtype

    def call(self, graph_module: GraphModule) -> PassResult:
        """Record the run."""
        self.record = record_graph(graph_module, self.inputs, self.dtype)
        return PassResult(graph_module, False)

    def ensures(self, graph_module: GraphModule) -> None:
        """Compare the run with what must hold.

        Raises:
            PlanError: a guard no longer holds, or an output has another shape.
        """
        broken = guards_hold(graph_module, self.record.values)
        if broken is not None:
            raise PlanError(f"control flow at {broken} would take another branch on the student's grids")
        found = output_shapes(graph_module, self.record)
        if found != self.output:
            raise PlanError(f"the output would change from {self.output} to {found}")
