"""Canonicalise: bring operations written in several ways into the one form the other passes know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.tracing.meta import Meta
from redistill.tracing.operators import module_of

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    torch.dropout: nn.Dropout,
}


class CanonicalizePass(PassBase):
    """Functional dropout and pooling become modules.

    ``F.dropout(training=self.training)`` has the flag of the trace baked in; as a module it follows ``train()`` and
    ``eval()``. Dropout that is always on stays a function.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        modified = False
        for node in list(graph_module.graph.nodes):
            module = _as_module(node)
            if module is not None:
                replace_by_module(graph_module, node, module)
                modified = True
        if modified:
            graph_module.recompile()
        return PassResult(graph_module, modified)


class GlobalPoolPass(PassBase):
    """A fixed average pool over a whole map becomes a global pool: on a coarser grid it would no longer cover it."""

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        found = [node for node in graph_module.graph.nodes if _covers_its_input(node)]
        for node in found:
            graph_module.set_submodule(str(node.target), nn.AdaptiveAvgPool2d(1))
        return PassResult(graph_module, bool(found))


def replace_by_module(graph_module: GraphModule, node: Node, module: nn.Module) -> None:
    """Let ``node`` call ``module``, registered under the node's name, on the node's first argument."""
    name = node.name
    while hasattr(graph_module, name):
        name += "_"
    module.train(graph_module.training)
    graph_module.add_submodule(name, module)
    node.op, node.target = "call_module", name
    node.args, node.kwargs = (node.all_input_nodes[0],), {}


def _as_module(node: Node) -> nn.Module | None:
    """The module that does what a functional dropout or pool does, if its arguments are constants."""
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return None
    if node.target in _DROPOUTS:
        always = inspect.signature(F.dropout).bind(*node.args, **node.kwargs).arguments.get("training", True)
        return None if always else _DROPOUTS[node.target](_arguments(F.dropout, node)["p"])
    if node.target is F.max_pool2d:
        given = _arguments(F.max_pool2d_with_indices, node)
        return None if given.pop("return_indices") else nn.MaxPool2d(**given)
    if node.target is F.avg_pool2d:
        return nn.AvgPool2d(**_average_pool_arguments(node))
    if node.target is F.adaptive_avg_pool2d:
        return nn.AdaptiveAvgPool2d(**_arguments(F.adaptive_avg_pool2d, node))
    return None


def _arguments(function: Callable[..., Any], node: Node) -> dict[str, Any]:
    """The node's arguments by name, without the input and without what a module holds itself."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return {k: v for k, v in list(bound.arguments.items())[1:] if k not in ("training", "inplace")}


def _average_pool_arguments(node: Node) -> dict[str, Any]:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    given.pop("input", None)
    return given


def _covers_its_input(node: Node) -> bool:
    module = module_of(node)
    if not isinstance(module, nn.AvgPool2d) or "shape" not in node.meta:
        return False
    source = node.all_input_nodes[0]
    height, width = source.meta[Meta.SHAPE][-2:]
    kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
    return tuple(kernel) == (height, width) and module.padding in (0, (0, 0)) and node.meta[Meta.SHAPE][-2:] == (1, 1)
