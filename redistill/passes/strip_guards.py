"""Strip guards: once a rewrite has been verified, what was kept only for that goes."""

from __future__ import annotations

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PassError
from redistill.tracing.guards import is_guard_only
from redistill.tracing.meta import Meta


class StripGuardsPass(PassBase):
    """Erases the nodes that only guards read, and the guards."""

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        modified = False
        for node in reversed(graph_module.graph.nodes):
            node.meta.pop(Meta.GUARD, None)
            if is_guard_only(node):
                graph_module.graph.erase_node(node)
                modified = True
        if modified:
            graph_module.recompile()
        return PassResult(graph_module, modified)

    def ensures(self, graph_module: GraphModule) -> None:
        """Check that no guard is left and that nothing else was torn out."""
        left = [node.name for node in graph_module.graph.nodes if Meta.GUARD in node.meta or is_guard_only(node)]
        if left:
            raise PassError(f"strip guards: {', '.join(left)} are left")
        graph_module.graph.lint()
