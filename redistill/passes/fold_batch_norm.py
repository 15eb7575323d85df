"""Fold batch norm: an inference-only rewrite that moves batch norms into the convolutions before them."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.utils.fusion import fuse_conv_bn_eval

from redistill.errors import RedistillError
from redistill.tracing.operators import is_foldable_batch_norm, modules_of


class FoldBatchNormPass(PassBase):
    """Folds each batch norm that follows a convolution which nothing else reads; outputs stay the same in eval mode."""

    def requires(self, graph_module: GraphModule) -> None:
        """Statistics of a batch are not in the weights: the graph must be in eval mode."""
        if graph_module.training:
            raise RedistillError("batch norms can be folded in eval mode only; call .eval() first")

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        modules = modules_of(graph_module)
        modified = False
        for node in list(graph_module.graph.find_nodes(op="call_module")):
            if not is_foldable_batch_norm(node, modules):
                continue
            source = node.all_input_nodes[0]
            convolution, norm = modules[str(source.target)], modules[str(node.target)]
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            folded = fuse_conv_bn_eval(convolution.eval(), norm.eval(), transpose=transposed)  # type: ignore[type-var,arg-type]
            graph_module.set_submodule(str(source.target), folded)
            modules[str(source.target)] = folded
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
            modified = True
        if modified:
            graph_module.delete_all_unused_submodules()
            graph_module.recompile()
        return PassResult(graph_module, modified)
