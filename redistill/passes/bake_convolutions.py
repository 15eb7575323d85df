"""Bake convolutions: an inference-only rewrite of convolutions that compute their weights into plain ones.

Weight normalisation (new and old), spectral normalisation, standardised and rescaled weights: all of them are, at
inference, one convolution with constant weights. Which one is seen by running the module, not by knowing its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from redistill.errors import RedistillError
from redistill.tracing.meta import Meta
from redistill.tracing.operators import is_plain_convolution, modules_of

_CONVOLUTIONS: dict[Any, tuple[type[_ConvNd], tuple[str, ...]]] = {
    function: (kind, ("stride", "padding", "dilation", "groups"))
    for function, kind in ((F.conv1d, nn.Conv1d), (F.conv2d, nn.Conv2d), (F.conv3d, nn.Conv3d))
} | {
    function: (kind, ("stride", "padding", "output_padding", "groups", "dilation"))
    for function, kind in (
        (F.conv_transpose1d, nn.ConvTranspose1d),
        (F.conv_transpose2d, nn.ConvTranspose2d),
        (F.conv_transpose3d, nn.ConvTranspose3d),
    )
}
"""What each function computes as a module, and its arguments after input, weight and bias, in order."""


class BakeConvolutionsPass(PassBase):
    """Replaces each convolution whose weights are computed by the plain one that it is; outputs stay the same."""

    def requires(self, graph_module: GraphModule) -> None:
        """Weights may depend on the mode: the graph must be in eval mode."""
        if graph_module.training:
            raise RedistillError("weights can be baked in eval mode only; call .eval() first")

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        modules, modified = modules_of(graph_module), False
        for node in graph_module.graph.find_nodes(op="call_module"):
            module = modules[str(node.target)]
            if isinstance(module, _ConvNd) and not is_plain_convolution(module):
                plain = plain_convolution(module, _input_shape(node))
                if plain is not None:
                    graph_module.set_submodule(str(node.target), plain)
                    modules[str(node.target)], modified = plain, True
        return PassResult(graph_module, modified)


def _input_shape(node: Node) -> tuple[int, ...] | None:
    source = node.args[0] if node.args else None
    return source.meta.get(Meta.SHAPE) if isinstance(source, Node) else None


def plain_convolution(module: nn.Module, shape: tuple[int, ...] | None) -> nn.Module | None:
    """The plain convolution that ``module`` is at inference, seen on inputs of ``shape``; None if it is none."""
    if shape is None:
        return None
    first, second = (_watch(module, shape, seed) for seed in (0, 1))
    if first is None or second is None or not torch.equal(first[1], second[1]):  # weights that depend on the input
        return None
    return _build(*first)


Found = tuple[Any, Tensor, "Tensor | None", dict[str, Any]]


class _Watch(TorchFunctionMode):
    """Notes the convolutions that run, and their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            self.calls.append((func, args, kwargs or {}, result))
        return result


def _watch(module: nn.Module, shape: tuple[int, ...], seed: int) -> Found | None:
    """The one convolution of the module's own input that is its own output."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(next(module.parameters()))
    with torch.no_grad(), _Watch() as watch:
        result = module(x)
    if len(watch.calls) != 1:
        return None
    function, args, kwargs, output = watch.calls[0]
    names = ("input", "weight", "bias", *_CONVOLUTIONS[function][1])
    given = dict(zip(names, args, strict=False)) | kwargs
    if given["input"] is not x or output is not result:
        return None
    return function, given["weight"], given.get("bias"), {k: v for k, v in given.items() if k not in names[:3]}


def _build(function: Any, weight: Tensor, bias: Tensor | None, settings: dict[str, Any]) -> nn.Module:
    kind: Any = _CONVOLUTIONS[function][0]
    groups = settings.get("groups", 1)
    here, there = weight.shape[:2]
    channels = (here, there * groups) if issubclass(kind, _ConvTransposeNd) else (there * groups, here)
    plain: nn.Module = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, **settings)
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return plain.eval()
