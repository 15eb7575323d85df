"""Batch norm inside the weights, as it is deployed, while its scale and shift can still be trained.

A folded convolution computes conv(x, w * s) + beta + (b - mean) * s with s = gamma / sqrt(var + eps) per output channel
(Jacob et al. 2018, section 3.2), where mean and var are the running statistics, frozen. The product is part of the
graph, so that gradients reach w, b, gamma and beta under their own names; :func:`bake` makes constants of it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

ATEN = torch.ops.aten
FOLDABLE = (ATEN.conv2d.default, ATEN.conv1d.default, ATEN.linear.default)


def scale_of(gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """The factor of each channel, [C]."""
    root = (variance + epsilon).rsqrt()
    return root if gamma is None else gamma * root


def fold_weight(weight: Tensor, gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """The weight of a convolution or linear layer, [C, ...], times each channel's factor."""
    return weight * scale_of(gamma, variance, epsilon).reshape(-1, *[1] * (weight.dim() - 1))


def fold_bias(
    bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    """What is added to each channel, [C]."""
    shift = -mean if bias is None else bias - mean
    folded = shift * scale_of(gamma, variance, epsilon)
    return folded if beta is None else folded + beta


def depthwise_weight(gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """A batch norm by itself as a depthwise convolution of 1x1, [C, 1, 1, 1]."""
    return scale_of(gamma, variance, epsilon)[:, None, None, None]


def fold_batch_norms(graph_module: GraphModule) -> None:
    """Fold each batch norm of an ATen graph into the operation before it, or make a depthwise convolution of it.

    Without the latter, a norm that follows a RED block would be computed in floating point between int8 neighbours.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is not ATEN.batch_norm.default or node.args[5]:
            continue
        source = node.args[0]
        if source.target in FOLDABLE and len(source.users) == 1:
            _replace(node, source, _fold_into(source, node))
        elif source.meta["val"].dim() == 4:
            _replace(node, node, _as_depthwise(source, node))
    graph_module.graph.eliminate_dead_code()


def _fold_into(source: Node, norm: Node) -> Node:
    """The operation before a norm with the norm in its weight and bias."""
    gamma, beta, mean, variance, epsilon = (norm.args[i] for i in (1, 2, 3, 4, 7))
    x, weight, bias, *rest = (*source.args, None)[: max(3, len(source.args))]
    with norm.graph.inserting_before(norm):
        folded = norm.graph.call_function(fold_weight, (weight, gamma, variance, epsilon))
        shift = norm.graph.call_function(fold_bias, (bias, gamma, beta, mean, variance, epsilon))
        folded.meta["val"], shift.meta["val"] = weight.meta["val"], mean.meta["val"]  # type: ignore[union-attr]
        return norm.graph.call_function(source.target, (x, folded, shift, *rest))  # type: ignore[arg-type]


def _as_depthwise(source: Node, norm: Node) -> Node:
    """A norm that nothing before can take in, as a convolution."""
    gamma, beta, mean, variance, epsilon = (norm.args[i] for i in (1, 2, 3, 4, 7))
    with norm.graph.inserting_before(norm):
        weight = norm.graph.call_function(depthwise_weight, (gamma, variance, epsilon))
        shift = norm.graph.call_function(fold_bias, (None, gamma, beta, mean, variance, epsilon))
        statistics = mean.meta["val"]  # type: ignore[union-attr]
        weight.meta["val"], shift.meta["val"] = statistics[:, None, None, None], statistics
        geometry = ([1, 1], [0, 0], [1, 1], statistics.shape[0])
        return norm.graph.call_function(ATEN.conv2d.default, (source, weight, shift, *geometry))


def _replace(norm: Node, model: Node, folded: Node) -> None:
    folded.meta = {**model.meta, "val": norm.meta["val"]}
    norm.replace_all_uses_with(folded)


@torch.no_grad()
def bake(graph_module: GraphModule) -> None:
    """Compute what depends on weights alone, once and for all; observers and fake quantisers are left as they are."""
    constants: dict[Node, Any] = {}
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(graph_module)
        elif node.target in (fold_weight, fold_bias, depthwise_weight):
            arguments = [constants[value] if isinstance(value, Node) else value for value in node.args]
            constants[node] = node.target(*arguments)
            _make_constant(graph_module, node, constants[node])
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _make_constant(graph_module: GraphModule, node: Node, value: Tensor) -> None:
    name = f"folded_{node.name}"
    graph_module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    with node.graph.inserting_before(node):
        constant = node.graph.get_attr(name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
    node.graph.erase_node(node)
