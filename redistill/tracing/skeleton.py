"""Skeletons: a module's structure with tensors on ``meta``, on which a graph's values are computed at no cost."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from redistill.tracing.operators import is_plain_batch_norm


def make_skeleton(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` whose tensors are on ``meta``: no weight is copied."""
    tensors: dict[int, Tensor] = {id(t): t for t in module.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    for part in module.modules():
        candidates = [*part.__dict__.values(), *part._parameters.values(), *part._buffers.values()]
        tensors.update({id(t): t for t in candidates if isinstance(t, Tensor)})
    memo: dict[int, Any] = {key: _meta_tensor(tensor) for key, tensor in tensors.items()}
    return copy.deepcopy(module, memo)


def _meta_tensor(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def evaluate(root: nn.Module, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
    """The value of one graph operation, module weights taken from ``root``."""
    if kind == "get_attr":
        return operator.attrgetter(target)(root)
    if kind == "call_module":
        module = root.get_submodule(target)
        if is_plain_batch_norm(module):
            return torch.empty_like(args[0])  # the meta kernel decomposes a batch norm, ten times as slow
        return module(*args, **kwargs)
    if kind == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def build_graph_module(module: nn.Module, graph: Graph, skeleton: nn.Module) -> GraphModule:
    """``graph`` over the modules of ``module`` (shared, not copied) and the constants found while tracing."""
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            find = operator.attrgetter(str(node.target))
            try:
                attributes[str(node.target)] = find(module)
            except AttributeError:
                attributes[str(node.target)] = find(skeleton)
    graph_module = GraphModule(attributes, graph, type(module).__name__)
    graph_module.training = module.training
    return graph_module


@contextmanager
def mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    """Put ``module`` into train or eval mode, and every part of it back as it was."""
    before = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, flag in before.items():
            part.training = flag


def to_meta(value: Any) -> Any:
    """``value`` with every tensor in it on ``meta``."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, (tuple, list, dict)) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
        return tree_map(to_meta, value)
    return value
