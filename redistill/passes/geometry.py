"""Geometry: give a sliding operation new strides and paddings so that its output has the sides wanted.

Nothing of the input may be lost on the way: what is cropped from the end of an output is never more than what padding
made, or less than one stride.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import nn

from redistill.errors import PlanError
from redistill.internal.text import format_shape
from redistill.tracing.copying import with_plain_weights
from redistill.tracing.windows import Sides, Window


class UnreachableGridError(PlanError):
    """An operation cannot make a side as long as wanted; without padding a coarser grid loses more at its border."""

    def __init__(self, name: str, axis: int, dims: int, wanted: int, largest: int) -> None:
        super().__init__(f"no padding lets {name} make a map of side {wanted}; the largest side is {largest}")
        self.axis, self.dims = axis, dims
        self.largest = largest


@dataclass(frozen=True)
class Fit:
    """A window with its new stride and padding, and how much to crop from the end of each side of its output."""

    window: Window
    crop: Sides

    @property
    def is_identity(self) -> bool:
        """Whether it is a pool that has nothing left to pool."""
        return self.window.kind == "pool" and set(self.window.kernel) == set(self.window.stride) == {1}


@dataclass(frozen=True)
class _Axis:
    """One axis of a window."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    output_padding: int
    spare: int = 0

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1


def refit(name: str, window: Window, strides: Sequence[Fraction], source: Sides, target: Sequence[int | None]) -> Fit:
    """``window`` with ``strides``, padded so that it takes a map with sides ``source`` to one with sides ``target``.

    Args:
        name: what messages call the operation.
        window: of a convolution, transposed convolution or pool.
        strides: input side over output side, for each axis; for a transposed convolution at most 1.
        source: sides of the input.
        target: sides wanted; None leaves the axis as it is.

    Raises:
        UnreachableGridError: no padding leads there.
        PlanError: a part of the input as long as a stride would be lost.
    """
    fit_axis = {"transposed": _fit_transposed, "convolution": _fit_convolution, "pool": _fit_pool}[window.kind]
    axes, crops = [], []
    for index, stride in enumerate(strides):
        own, wanted = _axis(window, index), target[index]
        try:
            axis, crop = (own, 0) if wanted is None else fit_axis(own, window, stride, source[index], wanted)
        except _UnreachableError as error:
            raise UnreachableGridError(name, index, len(source), wanted or 0, error.largest) from None
        except _LossyError as error:
            raise PlanError(
                f"{name} would lose the last {error.lost} of {source[index]} cells of a side of its "
                f"{format_shape(source)} input, to make {wanted}"
            ) from None
        axes.append(axis)
        crops.append(crop)
    return Fit(_assemble(window, axes), tuple(crops))


class _UnreachableError(Exception):
    def __init__(self, largest: int) -> None:
        self.largest = largest


class _LossyError(Exception):
    def __init__(self, lost: int) -> None:
        self.lost = lost


def _axis(window: Window, index: int) -> _Axis:
    names = ("kernel", "stride", "padding", "dilation", "output_padding", "spare")
    return _Axis(**{name: getattr(window, name)[index] for name in names if getattr(window, name)})


def _assemble(window: Window, axes: Sequence[_Axis]) -> Window:
    return replace(
        window,
        kernel=tuple(a.kernel for a in axes),
        stride=tuple(a.stride for a in axes),
        padding=tuple(a.padding for a in axes),
        output_padding=tuple(a.output_padding for a in axes),
    )


def uncropped(source: int, reach: int, target: int) -> int:
    """The side nearest to ``target``, but no larger if it is padded, that a window of stride 1 makes without a crop."""
    unpadded = source - reach + 1
    return unpadded if unpadded >= target else target - (target - unpadded) % 2


def widen(module: nn.Module, times: int) -> nn.Module:
    """A copy with ``times`` copies of each output channel side by side: shuffled into space they enlarge its output."""
    widened = _with_repeated(module, [("weight", 0, times), ("bias", 0, times)])
    widened.out_channels *= times
    return widened  # type: ignore[no-any-return]


def stretch(module: nn.Module, times: Sequence[int]) -> nn.Module:
    """A copy of a transposed convolution with each cell of its kernel so many times: its output enlarged, by nearest.

    What :func:`stretched` says of its window must be written into it.
    """
    longer = _with_repeated(module, [("weight", axis + 2, count) for axis, count in enumerate(times)])
    longer.kernel_size = tuple(longer.weight.shape[2:])
    return longer  # type: ignore[no-any-return]


def stretched(window: Window, times: Sequence[int]) -> Window:
    """The window of a transposed convolution that lays out each cell so many times."""

    def longer(sides: Sides) -> Sides:
        return tuple(side * count for side, count in zip(sides, times, strict=True))

    return replace(
        window,
        kernel=longer(window.kernel),
        stride=longer(window.stride),
        padding=longer(window.padding),
        output_padding=longer(window.output_padding),
    )


def _with_repeated(module: nn.Module, repeats: Sequence[tuple[str, int, int]]) -> Any:
    """A copy of a module with weights of its own, repeated along an axis so many times."""
    module = with_plain_weights(module)
    found: Any = copy.copy(module)
    found._parameters = dict(found._parameters)
    for name, axis, count in repeats:
        value = found._parameters[name]
        if value is not None:
            found._parameters[name] = nn.Parameter(value.detach().repeat_interleave(count, axis), value.requires_grad)
    return found


def _fit_convolution(axis: _Axis, _: Window, stride: Fraction, source: int, target: int) -> tuple[_Axis, int]:
    step = int(stride)
    sizes = {p: (source + 2 * p - axis.reach) // step + 1 for p in range(axis.reach)}
    padding, crop = _choose(sizes, axis.padding, target)
    _check_seen(source, target, axis.reach, step, padding)
    return replace(axis, stride=step, padding=padding), crop


def _fit_pool(axis: _Axis, window: Window, stride: Fraction, source: int, target: int) -> tuple[_Axis, int]:
    step = int(stride)
    covers = axis.kernel == axis.stride  # a pool whose windows tile its input goes on tiling it
    axis = replace(axis, kernel=step if covers else max(step, axis.kernel), stride=step)
    if covers and step == 1:
        return replace(axis, padding=0), 0
    sizes = {p: _pooled(source, axis.reach, step, p, window.ceil_mode) for p in range(axis.kernel // 2 + 1)}
    padding, crop = _choose(sizes, axis.padding, target)
    _check_seen(source, target, axis.reach, step, padding)
    return replace(axis, padding=padding), crop


def _pooled(side: int, reach: int, stride: int, padding: int, ceil_mode: bool) -> int:
    free = side + 2 * padding - reach
    if not ceil_mode:
        return free // stride + 1
    out = math.ceil(free / stride) + 1
    return out - 1 if (out - 1) * stride >= side + padding else out  # the last window must start inside


def _fit_transposed(axis: _Axis, _: Window, stride: Fraction, source: int, target: int) -> tuple[_Axis, int]:
    step = int(1 / stride)
    extra = min(axis.output_padding, max(step, axis.dilation) - 1)
    most = axis.reach + step * axis.spare
    sizes = {p: (source - 1) * step - 2 * p + axis.reach + extra for p in range(most)}
    padding, crop = _choose(sizes, axis.padding, target)
    lost = source - (target + padding - 1) // step - 1
    if lost > axis.spare:
        raise _LossyError(lost)
    return replace(axis, stride=step, padding=padding, output_padding=extra), crop


def _choose(sizes: dict[int, int], padding: int, wanted: int) -> tuple[int, int]:
    """The padding nearest to the operation's own that gives the side wanted, or a larger side and what to crop."""
    best = min(
        (p for p, size in sizes.items() if size >= wanted),
        key=lambda p: (sizes[p] - wanted, abs(p - padding)),
        default=None,
    )
    if best is None:
        raise _UnreachableError(max(sizes.values()))
    return best, sizes[best] - wanted


def _check_seen(source: int, target: int, reach: int, stride: int, padding: int) -> None:
    """No more than a convolution's own rounding may go unseen at the end."""
    lost = source - ((target - 1) * stride - padding + reach)
    if lost >= max(stride, 2):
        raise _LossyError(lost)
