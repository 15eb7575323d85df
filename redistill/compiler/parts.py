"""Parts: of a teacher whose whole cannot be traced, the largest part that can be planned, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from redistill.compiler.analysis import Analysis
from redistill.errors import RedistillError, TraceError
from redistill.internal.text import format_shapes
from redistill.tracing.call import read_call, signature_of
from redistill.tracing.contexts import preserved_generators
from redistill.tracing.copying import set_mode, working_copy
from redistill.tracing.skeleton import to_meta

MAX_PARTS = 8
"""Parts that are tried, the largest first."""


class Part(NamedTuple):
    """A part of a teacher: its path, and its analysis for the very inputs that it gets there."""

    path: str
    analysis: Analysis


def find_part(
    teacher: nn.Module, example: Any, error: TraceError, analyze: Callable[[nn.Module, Any], Analysis]
) -> Part:
    """The part with the most values in its maps that can be traced and has a grid to pool.

    Args:
        teacher: the whole; run once, in eval mode.
        example: what the whole is called with.
        error: why the whole cannot be traced.
        analyze: of a part and what it is called with.

    Raises:
        TraceError: no such part; or ``error`` itself, where it has another cause than data.
    """
    if not error.depends_on_data:
        raise error
    calls = _run_watched(teacher, example)
    for path in sorted(calls, key=lambda path: -calls[path].values)[:MAX_PARTS]:
        part = teacher.get_submodule(path)
        try:
            analysis = analyze(part, _example(part, calls[path]))
        except RedistillError:
            continue
        if any(stage.fixed is None for stage in analysis.stages.free):
            return Part(path, replace(analysis, notes=(_note(path, analysis, error), *analysis.notes)))
    raise TraceError(f"{error}; no submodule before that line can be traced and has a grid to pool")


def _note(path: str, analysis: Analysis, error: TraceError) -> str:
    reason = str(error).partition(": ")[2].partition(". ")[0]
    return (
        f"planned is {path} alone, called with {format_shapes(analysis.inputs)}; the rest stays as it is, and its "
        f"memory is not counted: {reason}"
    )


@dataclass
class _Calls:
    """How a submodule was called (tensors on ``meta``), and how many values its layers yielded."""

    times: int = 0
    values: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def _run_watched(teacher: nn.Module, example: Any) -> dict[str, _Calls]:
    """Run the teacher and see how its submodules are called: those that have parts themselves, and are called once."""
    call, inputs = read_call(teacher, example)
    twin = working_copy(teacher)
    set_mode(twin, training=False)
    found = {path: _Calls() for path, _ in twin.named_modules()}
    layers = {path for path, part in twin.named_modules() if next(part.children(), None) is None}
    for path, part in twin.named_modules():
        part.register_forward_pre_hook(_note_call(found[path]), with_kwargs=True)
        if path in layers:
            part.register_forward_hook(_note_values([calls for p, calls in found.items() if path.startswith(f"{p}.")]))
    with torch.no_grad(), preserved_generators():
        call.run(twin, inputs)
    return {path: calls for path, calls in found.items() if path and path not in layers and calls.times == 1}


def _note_call(calls: _Calls) -> Callable[..., None]:
    def note(part: nn.Module, args: Any, kwargs: Any) -> None:
        calls.times += 1
        calls.args, calls.kwargs = to_meta(args), to_meta(kwargs)

    return note


def _note_values(around: list[_Calls]) -> Callable[..., None]:
    def note(part: nn.Module, args: Any, output: Any) -> None:
        values = sum(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor))
        for calls in around:
            calls.values += values

    return note


def _example(part: nn.Module, calls: _Calls) -> Any:
    """What a part is called with, as zeros."""
    device = next((p.device for p in part.parameters()), None)
    args, kwargs = tree_map_only(Tensor, lambda x: torch.zeros_like(x, device=device), (calls.args, calls.kwargs))
    return dict(signature_of(part).bind(*args, **kwargs).arguments) if kwargs else args
