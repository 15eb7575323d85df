"""Capture: trace a teacher, bring the graph into canonical form, and accept it only after checking it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from redistill.errors import ModelError, TraceError
from redistill.internal.text import format_shapes
from redistill.tracing import operators
from redistill.tracing.call import Call, read_call, take_apart
from redistill.tracing.canonicalize import CanonicalizePass
from redistill.tracing.guards import is_guard_only
from redistill.tracing.skeleton import build_graph_module, mode_of
from redistill.tracing.tracer import trace_graph


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
    """Trace ``model`` for an example input and check the graph.

    The example is a tensor, a tuple or list of arguments (lists, tuples and dicts of tensors among them), or a mapping
    of arguments by keyword. What in it is no tensor is a constant of the graph.

    Accepted is a graph in which every strided convolution and batch norm is visible, which is the same in train and
    eval mode, and whose outputs equal the model's own at the example size and at another size and batch size.

    Raises:
        ModelError: the model does not run on the inputs.
        TraceError: the model cannot be traced, or its graph fails a check; the message names module, file and line.
    """
    leaf_modules = tuple(leaf_modules)
    call, inputs = read_call(model, example_input)
    with mode_of(model, training=False):
        try:
            graph, opaque, skeleton = trace_graph(model, inputs, leaf_modules, call)
        except TraceError:
            _check_runs(model, call, inputs)
            raise
    call = replace(call, result=graph.output_node().meta["result"])
    notes = _compare_modes(model, graph, call, inputs, leaf_modules) if check else ()
    with mode_of(model, training=False):
        _check_visible(model, opaque)
        graph_module = build_graph_module(model, graph, skeleton)
        CanonicalizePass()(graph_module)
        graph_module.training = False
        if check:
            check_outputs(model, graph_module, call, inputs)
    notes += tuple(f"{path} stays one node: {reason}" for path, reason in opaque.items())
    return Capture(graph_module, notes, inputs, call)


def _check_runs(model: nn.Module, call: Call, inputs: Sequence[Tensor]) -> None:
    """Is it the model and its input that do not fit, rather than the trace?"""
    shapes = format_shapes(inputs)
    try:
        with torch.no_grad():
            call.run(model, inputs)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{type(model).__name__} does not run on an input of {shapes}: {reason}") from error


def _compare_modes(
    model: nn.Module, graph: Graph, call: Call, inputs: Sequence[Tensor], leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[str, ...]:
    """Equal graphs, or a train graph that only has more in it (auxiliary heads, which inference has not)."""
    with mode_of(model, training=True):
        train_graph, _, _ = trace_graph(model, inputs, leaf_modules, call)
    ours, theirs = _operations(graph), _operations(train_graph)
    if _embeds(ours, theirs):
        extra = [str(n.target) for n in theirs if n.op == "call_module"]
        for node in ours:
            if node.op == "call_module":
                extra.remove(str(node.target))
        return (f"left out, used in training only: {', '.join(dict.fromkeys(extra))}",) if extra else ()
    where = next((n for n, other in zip(ours, theirs, strict=False) if not _alike(n, other)), ours[-1])
    raise TraceError(
        f"{type(model).__name__} computes something else in train mode from {where.name} ({where.target}) on; put what "
        "depends on self.training into a module of its own and name its class in leaf_modules="
    )


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


def check_outputs(model: nn.Module, graph_module: GraphModule, call: Call, inputs: Sequence[Tensor]) -> None:
    """Compare graph and model, both in eval mode, at two other sizes and another batch size.

    The trace was recorded at the example size, so it is there that it could not be wrong by itself; that size is tried
    only if the model takes no other.

    Raises:
        TraceError: outputs differ.
    """
    compared = [_compare(model, graph_module, call, trial) for trial in _other_sizes(inputs)]
    if not any(compared):
        _compare(model, graph_module, call, tuple(_random_like(x, x.shape) for x in inputs))


def _compare(model: nn.Module, graph_module: GraphModule, call: Call, trial: tuple[Tensor, ...]) -> bool:
    """Whether the model takes an input of this size; if it does, the graph must yield the same."""
    shapes = format_shapes(trial)
    with torch.no_grad():
        try:
            expected = take_apart(call.run(model, trial))[0]
        except Exception:
            return False
        try:
            found = graph_module(*trial)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise TraceError(f"the graph of {type(model).__name__} fails at {shapes}: {reason}") from error
    if not _equal(expected, found):
        raise TraceError(
            f"the graph of {type(model).__name__} and the model itself differ at {shapes}; a branch that depends on "
            "sizes or data was fixed while tracing: name the class that holds it in leaf_modules="
        )
    return True


def _equal(expected: Any, found: Any) -> bool:
    left, right = ([x for x in tree_leaves(value) if isinstance(x, Tensor)] for value in (expected, found))
    return len(left) == len(right) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(left, right, strict=True)
    )


def _random_like(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    if not tensor.is_floating_point():
        index = [torch.arange(n) % m for n, m in zip(shape, tensor.shape, strict=True)]
        return tensor[torch.meshgrid(*index, indexing="ij")] if index else tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator).to(tensor)


def _other_sizes(inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Large maps at 64 and 96 a side, small ones halved and twice as wide; the first with one more in the batch."""

    def shape(x: Tensor, small: int, more: int, height: Fraction, width: Fraction) -> tuple[int, ...]:
        if x.dim() != 4:
            return (x.shape[0] + more, *x.shape[1:]) if x.dim() else ()
        if min(x.shape[2:]) >= 128:
            height = width = Fraction(small, min(x.shape[2:]))
        sides = (x.shape[2] * height, x.shape[3] * width)
        return (x.shape[0] + more, x.shape[1], *(-(-side // 32) * 32 if side > 32 else int(side) for side in sides))

    half, whole, double = Fraction(1, 2), Fraction(1), Fraction(2)
    sizes = ((64, 1, half, half), (96, 0, whole, double))
    return [tuple(_random_like(x, shape(x, *size)) for x in inputs) for size in sizes]
