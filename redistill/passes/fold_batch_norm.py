"""Fold batch norm: an inference-only rewrite that moves batch norms into the convolutions before them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

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
            folded = fold(convolution, norm)  # type: ignore[arg-type]
            graph_module.set_submodule(str(source.target), folded)
            modules[str(source.target)] = folded
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
            modified = True
        if modified:
            graph_module.delete_all_unused_submodules()
            graph_module.recompile()
        return PassResult(graph_module, modified)


def fold(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    """A copy of ``convolution`` that computes what it and the norm after it do.

    With s = gamma / sqrt(var + eps), the weights of each output channel are times s, and the bias is
    beta + (b - mean) * s (Jacob et al. 2018, section 3.2). A transposed convolution's weight is
    [C in, C out / groups, ...]: output channel j of group g belongs to the g-th part of the input channels.
    """
    folded = copy.deepcopy(convolution).eval()
    with torch.no_grad():
        weight, bias = folded_tensors(convolution, norm)
    folded.weight = nn.Parameter(weight, requires_grad=convolution.weight.requires_grad)
    folded.bias = nn.Parameter(bias, requires_grad=convolution.weight.requires_grad)
    return folded


def folded_tensors(convolution: _ConvNd, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of what :func:`fold` makes, in the weight's type."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    bias = (0.0 if convolution.bias is None else convolution.bias) - norm.running_mean
    shift = bias * scale + (0.0 if norm.bias is None else norm.bias)
    weight = convolution.weight * _per_weight(scale, convolution)
    return weight.to(convolution.weight.dtype), shift.to(convolution.weight.dtype)


def _per_weight(scale: Tensor, convolution: _ConvNd) -> Tensor:
    """The output channels' factors, shaped to be multiplied with the weight."""
    ones = [1] * len(convolution.kernel_size)
    if not isinstance(convolution, _ConvTransposeNd):
        return scale.reshape(-1, 1, *ones)
    of_group = scale.reshape(convolution.groups, -1)
    return of_group.repeat_interleave(convolution.in_channels // convolution.groups, 0).reshape(
        convolution.in_channels, -1, *ones
    )
