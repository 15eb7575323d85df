"""Capture: trace a teacher, bring the graph into canonical form, and accept it only after checking it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from redistill.errors import TraceError
from redistill.tracing import operators
from redistill.tracing.caches import traced_past_caches
from redistill.tracing.call import Call, read_call
from redistill.tracing.canonicalize import CanonicalizePass, GlobalPoolPass
from redistill.tracing.checks import UnfaithfulError, check_gradient, check_outputs, check_runs
from redistill.tracing.contexts import plain_context
from redistill.tracing.copying import check_copyable
from redistill.tracing.guards import is_guard_only
from redistill.tracing.meta import Meta
from redistill.tracing.obstacles import check_unprepared
from redistill.tracing.skeleton import build_graph_module, to_meta
from redistill.tracing.tracer import trace_graph

EVAL_ONLY = "the student does in train mode what it does in eval mode, but for dropout and batch norm"


@dataclass(frozen=True)
class Capture:
    """A teacher's graph over the teacher's own modules, and what a reader should know of how it was obtained.

    Attributes:
        graph_module: takes tensors alone and returns them in plain tuples, lists and dicts.
        inputs: the tensors of the example input, in the graph's order.
        call: how the teacher itself is called, and what it returns.
    """

    graph_module: GraphModule
    notes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    call: Call


def capture(
    model: nn.Module, example_input: Any, leaf_modules: Iterable[type[nn.Module]] = (), check: bool = True
) -> Capture:
    """Trace ``model`` in eval mode for an example input and check the graph.

    The example is a tensor, a tuple or list of arguments (lists, tuples and dicts of tensors among them), or a mapping
    of arguments by keyword. What in it is no tensor is a constant of the graph.

    Accepted is a graph in which every strided convolution and batch norm is visible, and whose outputs equal the
    model's own at the example size and at another size and batch size. Where train mode does something else, a note
    says so. The model is not touched, whatever its forward writes to, and not even when something fails.

    Raises:
        ModelError: the model does not run on the inputs, holds weights that cannot be used, or is prepared for
            quantisation.
        TraceError: the model cannot be traced, or its graph fails a check; the message names module, file and line.
    """
    check_copyable(model)
    check_unprepared(model)
    try:
        return _capture(model, example_input, tuple(leaf_modules), check)
    except UnfaithfulError:  # perhaps for want of a guard on sizes that became text, the key of a cache
        return _capture(model, example_input, tuple(leaf_modules), check, reads_text=True)


def _capture(
    model: nn.Module,
    example_input: Any,
    leaf_modules: tuple[type[nn.Module], ...],
    check: bool,
    reads_text: bool = False,
) -> Capture:
    call, inputs = read_call(model, example_input)
    with plain_context(inputs):
        try:
            graph, opaque, root = traced_past_caches(
                model, call, inputs, lambda m: trace_graph(m, inputs, leaf_modules, call, False, reads_text)
            )
        except TraceError:
            check_runs(model, call, inputs)
            raise
        call = replace(call, result=graph.output_node().meta["result"])
        notes = _compare_modes(model, graph, call, inputs, leaf_modules) if check else ()
        _check_visible(model, opaque)
        graph_module = build_graph_module(model, graph, root)
        CanonicalizePass()(graph_module)
        graph_module.training = False
        inlined = graph.output_node().meta[Meta.INLINED]
        if check:
            check_outputs(model, graph_module, call, inputs)
        if check and any(map(operators.writes_in_place, graph.nodes)):
            check_gradient(graph_module, inputs)
        GlobalPoolPass()(graph_module)
    notes += tuple(f"{name} is inlined: its forward as it is, its gradient that of its forward" for name in inlined)
    notes += tuple(f"{path} stays one node: {reason}" for path, reason in opaque.items())
    return Capture(graph_module, notes, inputs, call)


def _compare_modes(
    model: nn.Module, graph: Graph, call: Call, inputs: Sequence[Tensor], leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[str, ...]:
    """What train mode has that the graph has not: auxiliary heads, or a computation of its own."""
    try:
        train_graph = _train_graph(model, call, inputs, leaf_modules)
    except TraceError as error:
        return (f"{EVAL_ONLY}; train mode cannot be traced: {error}",)
    ours, theirs = _operations(graph), _operations(train_graph)
    if _embeds(ours, theirs):
        extra = [str(n.target) for n in theirs if n.op == "call_module"]
        for node in ours:
            if node.op == "call_module":
                extra.remove(str(node.target))
        return (f"left out, used in training only: {', '.join(dict.fromkeys(extra))}",) if extra else ()
    where = next((n for n, other in zip(ours, theirs, strict=False) if not _alike(n, other)), ours[-1])
    place = operators.module_path(where) or type(model).__name__
    return (f"{EVAL_ONLY}; the teacher's train mode computes something else from {where.name} ({place}) on",)


def _train_graph(
    model: nn.Module, call: Call, inputs: Sequence[Tensor], leaf_modules: tuple[type[nn.Module], ...]
) -> Graph:
    """The graph in train mode, of two examples where one has no statistics."""
    try:
        return trace_graph(model, inputs, leaf_modules, call, training=True)[0]
    except TraceError:
        twice = [torch.cat([x, x]) if x.dim() else x for x in map(to_meta, inputs)]
        return trace_graph(model, twice, leaf_modules, call, training=True)[0]


def _operations(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if not is_guard_only(n) and not _is_copy(n)]


def _is_copy(node: Node) -> bool:
    return node.op == "call_method" and node.target == "contiguous"


def _embeds(ours: list[Node], theirs: list[Node]) -> bool:
    """Whether the train graph does all that the eval graph does, on the same values, and perhaps more."""
    rest = iter(theirs)
    partner: dict[Node, Node] = {}
    for node in ours[:-1]:  # the last is the output, which may have more in it
        wanted = [partner[_source(n)] for n in node.all_input_nodes]
        for other in rest:
            if _alike(node, other) and [_source(n) for n in other.all_input_nodes] == wanted:
                partner[node] = other
                break
        else:
            return False
    return True


def _source(node: Node) -> Node:
    return _source(node.all_input_nodes[0]) if _is_copy(node) else node


def _alike(node: Node, other: Node) -> bool:
    """The same operation with the same constants, but for the flag that says which mode it is."""
    if (node.op, node.target) != (other.op, other.target):
        return False
    name = operators.name_of(node)
    if "dropout" in name:  # made a module later, which follows the mode by itself
        return True
    ignored = () if name in ("batch_norm", "instance_norm") else ("training",)
    return bool(_constants(node, ignored) == _constants(other, ignored))


def _constants(node: Node, ignored: tuple[str, ...]) -> Any:
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ignored}
    return map_arg((node.args, kwargs), lambda _: None)


def _check_visible(model: nn.Module, opaque: dict[str, str]) -> None:
    """Pooling can only be moved between convolutions that the graph shows, and a hidden batch norm is baked."""
    for path, reason in opaque.items():
        for name, part in model.get_submodule(path).named_modules():
            strided = isinstance(part, _ConvNd) and any(s > 1 for s in part.stride)
            if strided or isinstance(part, _BatchNorm):
                inside = f"{path}.{name}".rstrip(".")
                raise TraceError(
                    f"{path} ({type(model.get_submodule(path)).__name__}) cannot be traced through: {reason}; it hides "
                    f"{inside} ({type(part).__name__}). Rewrite that line without control flow on data"
                )
