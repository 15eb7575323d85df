"""Skeletons: a module's structure with tensors on ``meta``, on which a graph's values are computed at no cost."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map

from redistill.tracing.copying import is_compiled, map_tensors
from redistill.tracing.operators import is_plain_batch_norm


def evaluate(root: nn.Module, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
    """The value of one graph operation on meta tensors, module weights taken from ``root``."""
    if kind == "get_attr":
        return operator.attrgetter(target)(root)
    if kind == "call_module":
        return _call(root.get_submodule(target), args, kwargs)
    if kind == "call_method" and target in ("cpu", "cuda"):
        return args[0].detach()
    args, kwargs = (tree_map(_device_of_trace, a) for a in (args, kwargs))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    if kind == "call_method":
        if target == "to":
            args = (args[0], *(torch.device("meta") if isinstance(a, str) else a for a in args[1:]))
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    if is_plain_batch_norm(module):
        return torch.empty_like(args[0])  # the meta kernel decomposes a batch norm, ten times as slow
    try:
        return module(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        with torch.device("meta"):  # it makes tensors of its own, without asking where its input is
            return module(*args, **kwargs)


def _device_of_trace(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


def known_value(node: Node, root: nn.Module, size_of: Callable[[Node], Any] = lambda _: None) -> Any:
    """What ``node`` yields, if it depends on weights, constants and known sizes alone; None if it does not."""
    size = size_of(node)
    if size is not None or node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root) if size is None else size
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return None
    sources: dict[Node, Any] = {}
    for source in node.all_input_nodes:
        sources[source] = known_value(source, root, size_of)
        if sources[source] is None:
            return None
    args, kwargs = (
        map_aggregate(a, lambda n: sources[n] if isinstance(n, Node) else n) for a in (node.args, node.kwargs)
    )
    return _result(node, args, kwargs)


def _result(node: Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def build_graph_module(module: nn.Module, graph: Graph, skeleton: nn.Module) -> GraphModule:
    """``graph`` over the modules of ``module`` and the constants found while tracing.

    They are shared, not copied; where hooks may keep what is given to them, copied with the very same tensors.
    """
    attributes: dict[str, Any] = {}
    original = module.get_submodule("_orig_mod") if is_compiled(module) else module
    name, training = type(original).__name__, module.training
    if any(part._forward_hooks for part in module.modules()):
        module = map_tensors(module, lambda tensor: tensor)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            find = operator.attrgetter(str(node.target))
            try:
                attributes[str(node.target)] = find(module)
            except AttributeError:
                attributes[str(node.target)] = find(skeleton)
    graph_module = GraphModule(attributes, graph, name)
    graph_module.training = training
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
