"""Geometry: give a convolution or pool a new stride and padding so that its output has the side wanted."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from redistill.errors import PlanError
from redistill.tracing.operators import is_convolution, is_pool, is_transposed_convolution

Pair = tuple[int, int]


class UnreachableGridError(PlanError):
    """An operation cannot make a side as long as wanted; without padding a coarser grid loses more at its border."""

    def __init__(self, module: nn.Module, axis: int, wanted: int, largest: int) -> None:
        super().__init__(f"no padding lets {module} make a map of side {wanted}; the largest side is {largest}")
        self.axis = axis
        self.largest = largest
        self.node = ""


@dataclass(frozen=True)
class Fit:
    """A module with its new stride and padding, and how much to crop from the end of each side of its output."""

    module: nn.Module
    crop: Pair = (0, 0)


def refit(module: nn.Module, stride: Fraction, source: Pair, target: Pair) -> Fit:
    """A copy of ``module`` (weights shared) that takes maps of ``source`` height and width to ``target``.

    Args:
        module: convolution, transposed convolution, max or average pool.
        stride: input side over output side; for a transposed convolution at most 1.
        source: height and width of the input.
        target: height and width wanted.

    Raises:
        UnreachableGridError: no padding leads there.
    """
    if is_pool(module) and stride == 1 and _pair(module.kernel_size) == _pair(module.stride):
        return Fit(nn.Identity())
    fitted = copy.copy(module)
    if is_transposed_convolution(module):
        crop = _fit_transposed(fitted, int(1 / stride), source, target)
    elif is_convolution(module):
        crop = _fit_convolution(fitted, int(stride), source, target)
    else:
        crop = _fit_pool(fitted, int(stride), source, target)
    return Fit(fitted, crop)


def widen(convolution: nn.Module, times: int) -> nn.Module:
    """A copy with ``times`` copies of each output channel side by side: shuffled into space they enlarge its output."""
    widened: Any = copy.copy(convolution)
    widened._parameters = dict(widened._parameters)
    widened.out_channels *= times
    for name, value in convolution._parameters.items():
        if value is not None:
            widened._parameters[name] = nn.Parameter(value.detach().repeat_interleave(times, 0), value.requires_grad)
    return widened  # type: ignore[no-any-return]


def _fit_convolution(module: Any, stride: int, source: Pair, target: Pair) -> Pair:
    module.stride = (stride, stride)
    own_forward = type(module).forward is not nn.Conv2d.forward  # pads by itself, from the stride
    if own_forward or isinstance(module.padding, str):
        return 0, 0
    sides = []
    for axis in (0, 1):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        sizes = {p: (source[axis] + 2 * p - reach) // stride + 1 for p in range(reach)}
        sides.append(_choose(sizes, module.padding[axis], target[axis], module, axis))
    module.padding = (sides[0][0], sides[1][0])
    module._reversed_padding_repeated_twice = [p for p, _ in reversed(sides) for _ in (0, 1)]
    return sides[0][1], sides[1][1]


def _fit_pool(module: Any, stride: int, source: Pair, target: Pair) -> Pair:
    kernel, before, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    covers = kernel == before  # a pool whose windows tile its input goes on tiling it
    kernel = (stride, stride) if covers else (max(stride, kernel[0]), max(stride, kernel[1]))
    dilation = _pair(getattr(module, "dilation", 1))
    sides = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        sizes = {p: _pooled(source[axis], reach, stride, p, module.ceil_mode) for p in range(kernel[axis] // 2 + 1)}
        sides.append(_choose(sizes, padding[axis], target[axis], module, axis))
    module.kernel_size, module.stride = kernel, (stride, stride)
    module.padding = (sides[0][0], sides[1][0])
    return sides[0][1], sides[1][1]


def _pooled(side: int, reach: int, stride: int, padding: int, ceil_mode: bool) -> int:
    free = side + 2 * padding - reach
    if not ceil_mode:
        return free // stride + 1
    out = math.ceil(free / stride) + 1
    return out - 1 if (out - 1) * stride >= side + padding else out  # the last window must start inside


def _fit_transposed(module: Any, stride: int, source: Pair, target: Pair) -> Pair:
    sides = []
    for axis in (0, 1):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        extra = min(module.output_padding[axis], max(stride, module.dilation[axis]) - 1)
        sizes = {p: (source[axis] - 1) * stride - 2 * p + reach + extra for p in range(reach)}
        sides.append((*_choose(sizes, module.padding[axis], target[axis], module, axis), extra))
    module.stride = (stride, stride)
    module.padding = (sides[0][0], sides[1][0])
    module.output_padding = (sides[0][2], sides[1][2])
    return sides[0][1], sides[1][1]


def _choose(sizes: dict[int, int], padding: int, wanted: int, module: nn.Module, axis: int) -> Pair:
    """The padding nearest to the module's own that gives the side wanted, or a larger side and what to crop of it."""
    best = min(
        (p for p, size in sizes.items() if size >= wanted),
        key=lambda p: (sizes[p] - wanted, abs(p - padding)),
        default=None,
    )
    if best is None:
        raise UnreachableGridError(module, axis, wanted, max(sizes.values()))
    return best, sizes[best] - wanted


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else tuple(value)
