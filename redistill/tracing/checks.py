"""Checks: does a graph compute what its model does, at the sizes it holds for?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from redistill.errors import ModelError, TraceError
from redistill.internal.reasons import first_line
from redistill.internal.text import format_shapes
from redistill.tracing.call import Call, take_apart
from redistill.tracing.contexts import preserved_generators
from redistill.tracing.copying import meta_copy, set_mode, working_copy
from redistill.tracing.meta import Meta
from redistill.tracing.skeleton import evaluate, to_meta

RELATIVE, OF_LARGEST = 1e-4, 1e-5  # rounding, in another order, of single precision


class UnfaithfulError(TraceError):
    """A graph does not compute what its model does."""


def check_outputs(model: nn.Module, graph_module: GraphModule, call: Call, inputs: Sequence[Tensor]) -> None:
    """Compare graph and model, both in eval mode, at two other sizes and another batch size.

    The trace was recorded at the example size, so it is there that it could not be wrong by itself; that size is tried
    only if the model takes no other, or a branch was taken that another size would not take.

    Raises:
        TraceError: outputs differ.
        ModelError: the model does not run, not even on its own input.
    """
    compared = [_compare(model, graph_module, call, trial) for trial in other_sizes(inputs)]
    if not any(compared):
        own = tuple(_random_like(x, x.shape) for x in inputs)
        if not _compare(model, graph_module, call, own):
            check_runs(model, call, inputs)


def check_runs(model: nn.Module, call: Call, inputs: Sequence[Tensor]) -> None:
    """Run the model on its example.

    Raises:
        ModelError: it does not run.
    """
    try:
        run_copy(model, inputs, call)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run on an input of {format_shapes(inputs)}: {first_line(error)}"
        ) from error


def check_gradient(graph_module: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Run a graph backwards that writes into parts of its own values, as a function with a backward of its own may do.

    Raises:
        TraceError: its gradient cannot be computed.
    """
    twin = working_copy(graph_module)
    with torch.enable_grad(), preserved_generators():
        outputs = [x.float().sum() for x in _tensors(twin(*inputs)) if x.requires_grad]
        weights = [p for p in twin.parameters() if p.requires_grad]
        try:
            if outputs:
                torch.autograd.grad(outputs, weights, allow_unused=True)
        except RuntimeError as error:
            raise TraceError(
                f"{type(graph_module).__name__} writes into values that its gradient needs, so that no student of it "
                f"could be trained ({first_line(error)[:160]}); name the class of the module that does so in "
                "leaf_modules="
            ) from error


def run_copy(model: nn.Module, inputs: Sequence[Any], call: Call | None = None) -> Any:
    """What ``model`` yields in eval mode; neither it nor a generator is changed, so a second run draws the same."""
    twin = working_copy(model)
    set_mode(twin, training=False)
    _fail_silently(twin)
    with torch.no_grad(), preserved_generators():
        return take_apart(call.run(twin, inputs))[0] if call else twin(*inputs)


def _fail_silently(twin: nn.Module) -> None:
    """Call the graphs in a copy as modules are called: ``GraphModule`` itself prints where it fails."""
    for part in twin.modules():
        if isinstance(part, GraphModule):
            kind = type(part)
            part.__class__ = type(kind.__name__, (kind,), {"__call__": nn.Module.__call__})


def _compare(model: nn.Module, graph_module: GraphModule, call: Call, trial: tuple[Tensor, ...]) -> bool:
    """Whether model and graph take an input of this size; if they do, they must yield the same."""
    try:
        expected = run_copy(model, trial, call)
    except Exception:
        return False
    reason = _difference(expected, graph_module, trial)
    if reason is None:
        return True
    if broken_guard(graph_module, trial) is not None:  # the graph says itself that it does not hold here
        return False
    if not _equal(expected, run_copy(model, trial, call)):
        reason = "it yields something else each time it runs, with the same input and the same seed"
    raise UnfaithfulError(f"the graph of {type(model).__name__} is not the model at {format_shapes(trial)}: {reason}")


def _difference(expected: Any, graph_module: GraphModule, trial: tuple[Tensor, ...]) -> str | None:
    try:
        found = run_copy(graph_module, trial)
    except Exception as error:
        return "it fails there, " + str(error).partition("\n")[0]
    if _equal(expected, found):
        return None
    return (
        f"outputs differ by {_distance(expected, found)}; something that Python computed while tracing (from sizes, a "
        "cache, or state of the model) depends on the input; name the class that holds it in leaf_modules="
    )


def broken_guard(graph_module: GraphModule, inputs: Sequence[Tensor]) -> str | None:
    """Where the graph relies on a size that these inputs do not have; None if nowhere, or if it fails before."""
    skeleton = meta_copy(graph_module)
    values: dict[Node, Any] = {}
    given = iter(inputs)

    def value_of(argument: Any) -> Any:
        return values[argument] if isinstance(argument, Node) else argument

    for node in graph_module.graph.nodes:
        args, kwargs = (map_aggregate(a, value_of) for a in (node.args, node.kwargs))
        try:
            with torch.no_grad():
                if node.op == "placeholder":
                    values[node] = to_meta(next(given))
                elif node.op != "output":
                    values[node] = to_meta(evaluate(skeleton, node.op, node.target, args, kwargs))
        except Exception:
            return None
        guard = node.meta.get(Meta.GUARD)
        if guard is not None and guard.convert(values[node]) != guard.value:
            return str(guard.where)
    return None


def _equal(expected: Any, found: Any) -> bool:
    left, right = _tensors(expected), _tensors(found)
    return len(left) == len(right) and all(map(_close, left, right))


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    precision = torch.finfo(a.dtype).eps / torch.finfo(torch.float32).eps
    scale = max(1.0, min(precision, 1e3))  # half precision rounds more, double is as good as its weights
    largest = a.detach().double().abs().nan_to_num(0, 0, 0).max().item() if a.numel() else 0.0
    atol = scale * OF_LARGEST * largest
    return torch.allclose(a.double(), b.double(), rtol=scale * RELATIVE, atol=atol, equal_nan=True)


def _distance(expected: Any, found: Any) -> str:
    left, right = _tensors(expected), _tensors(found)
    if [x.shape for x in left] != [x.shape for x in right]:
        return f"their shapes, {format_shapes(left)} against {format_shapes(right)}"
    worst = max((_relative(a, b) for a, b in zip(left, right, strict=True)), default=0.0)
    return f"{worst:.1e} of the largest"


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(torch.float64).tiny)) if a.numel() else 0.0


def _random_like(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    if not tensor.is_floating_point():
        index = [torch.arange(n) % m for n, m in zip(shape, tensor.shape, strict=True)]
        return tensor[torch.meshgrid(*index, indexing="ij")] if index else tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(tensor)


def other_sizes(inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Large maps at 64 and 96 a side, small ones halved and twice as wide; the first with one more in the batch."""
    # Which sizes? The trace is right at the example's by construction, so others must be tried, and such as the model
    # is likely to take: multiples of 32, for most networks halve five times; small, for they run in real arithmetic;
    # no square one alone, or rows and columns could be exchanged unseen; and another batch, or a baked batch size
    # could. Below 32 a side is only halved or doubled, since there a network was made for just such maps.

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
