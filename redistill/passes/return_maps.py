"""Return maps: what a network returns and reads on itself, such as a detector's features, gets an end of its own.

The network may then go on from a coarser map, while what it returns keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.tracing.meta import Meta


class ReturnMapsPass(PassBase):
    """Inserts an upsampling by 1 between maps, the ``returned`` of a stage graph, and the output.

    Nothing changes until a plan gives it a stride; where none does, it is left out again.
    """

    def __init__(self, returned: Iterable[str]) -> None:
        super().__init__()
        self.returned = tuple(returned)

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        nodes = {node.name: node for node in graph_module.graph.nodes}
        path = "returned"
        while hasattr(graph_module, path):
            path += "_"
        graph_module.add_submodule(path, nn.Upsample(scale_factor=1.0))
        output = graph_module.graph.output_node()
        for name in self.returned:
            with graph_module.graph.inserting_before(output):
                end = graph_module.graph.call_module(path, (nodes[name],))
            end.meta[Meta.RETURNS] = True
            nodes[name].replace_all_uses_with(end, delete_user_cb=lambda user: user is output)
        graph_module.recompile()
        return PassResult(graph_module, True)
