"""Reach along one axis: which part of its input an operation needs for a part of its output, and how it is run there.

Every rule answers for one axis, height or width; a part of a map is the product of both. Where the part needed goes
over the map's true border, and only there, what lies beyond is padded with what the operation itself pads with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from redistill.errors import PlanError

Span = tuple[int, int]
"""A part of an axis: first position, and one past the last."""


class TileError(PlanError):
    """A part of the output that the operation cannot make from a part of its input."""


@dataclass(frozen=True)
class Use:
    """How one axis of an operation is run for a part of its output.

    Attributes:
        low, high: the part of the input that is read.
        length: how much the operation yields.
        skip: how much of that, at its beginning, is not wanted.
        before, after: what is padded explicitly.
        padding, extra: the operation's own padding, and its output padding.
    """

    low: int
    high: int
    length: int
    skip: int = 0
    before: int = 0
    after: int = 0
    padding: int = 0
    extra: int = 0


class AxisRule(Protocol):
    """The rule of an operation along one axis."""

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``.

        Raises:
            TileError: it cannot be made by itself.
        """


@dataclass(frozen=True)
class Pointwise:
    """Each position depends on its own alone."""

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        return Use(low, high, high - low)


@dataclass(frozen=True)
class Window:
    """A convolution: windows ``reach`` wide, ``stride`` apart, the first beginning ``left`` before the map.

    Where equal padding on both sides gives the part wanted, the operation's own padding does it and nothing is copied.
    """

    size: int
    reach: int
    stride: int
    left: int
    mode: str = "zeros"

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        first, end = low * self.stride - self.left, (high - 1) * self.stride - self.left + self.reach
        begin, stop = max(first, 0), min(end, self.size)
        if begin >= stop:
            raise TileError(f"no part of the map is under the windows {low} to {high}")
        before, after = begin - first, end - stop
        if self.mode == "zeros" and self._yields(stop - begin + 2 * before) == high - low:
            return Use(begin, stop, high - low, padding=before)
        begin, stop = _mirrored(begin, stop, before, after, self.size, self.mode)
        if (max(first, 0) - begin) % self.stride:
            raise TileError(f"the reflected border of the map is not {self.stride} steps away")
        length = self._yields(stop - begin + before + after)
        return Use(begin, stop, length, (max(first, 0) - begin) // self.stride, before, after)

    def _yields(self, length: int) -> int:
        return (length - self.reach) // self.stride + 1


@dataclass(frozen=True)
class Pool:
    """A pool: it is run as it is on a part that begins at a multiple of its stride, and what is not wanted is left out.

    So its own rules for the border (ceil mode, whether padding counts) hold just where the map really ends.
    """

    size: int
    reach: int
    stride: int
    padding: int
    ceil_mode: bool

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        begin = max((low * self.stride - self.padding) // self.stride * self.stride, 0)
        stop = min((high - 1) * self.stride - self.padding + self.reach, self.size)
        skip, length = low - begin // self.stride, self._yields(stop - begin)
        if begin >= stop or length < skip + high - low:
            raise TileError(f"no part of the map is under the windows {low} to {high}")
        return Use(begin, stop, length, skip=skip)

    def _yields(self, length: int) -> int:
        free = length + 2 * self.padding - self.reach
        if not self.ceil_mode:
            return free // self.stride + 1
        count = -(-free // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= length + self.padding else count


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution: run without its border, or with what of its padding both sides have in common."""

    size: int
    reach: int
    stride: int
    padding: int

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        begin = max(-((self.reach - 1 - low - self.padding) // self.stride), 0)
        stop = min((high - 1 + self.padding) // self.stride + 1, self.size)
        if begin >= stop:
            raise TileError(f"no part of the map spreads to {low} to {high}")
        whole = (stop - begin - 1) * self.stride + self.reach
        left = low - (begin * self.stride - self.padding)
        right = whole - left - (high - low)
        padding = max(0, min(left, right))
        extra = max(0, -right)
        return Use(begin, stop, whole - 2 * padding + extra, skip=left - padding, padding=padding, extra=extra)


@dataclass(frozen=True)
class Enlarge:
    """Interpolation by a whole factor that reads ``margin`` neighbours each way: 0 nearest, 1 bilinear, 2 bicubic."""

    size: int
    factor: int
    margin: int

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        begin, stop = self._source(low) - max(self.margin - 1, 0), self._source(high - 1) + 1 + self.margin
        begin, stop = max(begin, 0), min(stop, self.size)
        return Use(begin, stop, (stop - begin) * self.factor, skip=low - begin * self.factor)

    def _source(self, position: int) -> int:
        if self.margin == 0:
            return position // self.factor
        return (2 * position + 1 - self.factor) // (2 * self.factor)


@dataclass(frozen=True)
class Shrink:
    """Positions that ``factor`` of the input's become one of (pixel unshuffle)."""

    factor: int

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        return Use(low * self.factor, high * self.factor, high - low)


@dataclass(frozen=True)
class Pad:
    """A pad by ``left`` (below zero: a crop) in one of ``torch.nn.functional.pad``'s modes."""

    size: int
    left: int
    mode: str

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        first, end = low - self.left, high - self.left
        begin, stop = min(max(first, 0), self.size - 1), max(min(end, self.size), 1)
        before, after = max(begin - first, 0), max(end - stop, 0)
        begin, stop = _mirrored(begin, stop, before, after, self.size, self.mode)
        skip = 0 if before else max(first - begin, 0)
        return Use(begin, stop, stop - begin + before + after, skip, before, after)


@dataclass(frozen=True)
class Slice:
    """Every ``step``-th position from ``start`` on."""

    start: int
    step: int

    def use(self, low: int, high: int) -> Use:
        """What it takes to make the output from ``low`` to ``high``."""
        return Use(self.start + low * self.step, self.start + (high - 1) * self.step + 1, high - low)


def _mirrored(begin: int, stop: int, before: int, after: int, size: int, mode: str) -> Span:
    """A part grown so that what a reflection repeats lies within it."""
    if mode != "reflect":
        return begin, stop
    return (min(begin, size - after - 1) if after else begin), (max(stop, before + 1) if before else stop)
