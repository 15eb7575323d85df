"""Packing: an offset in one arena for every buffer, and an independent check that no two live ones overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.errors import RedistillError
from redistill.memory.lifetimes import Buffer


@dataclass(frozen=True)
class ArenaLayout:
    """Offsets in bytes, one for each buffer in the order given; ``arena_bytes`` is what must be reserved."""

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int


def pack(buffers: Sequence[Buffer], rounds: int = 4) -> ArenaLayout:
    """Place ``buffers`` in an arena: greedy by size, then pairwise swaps of the order while they shrink the arena.

    The arena can never be smaller than the peak of the live bytes; on most networks it meets it.
    """
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].bytes, buffers[i].born, buffers[i].dies, i))
    bound = _peak_of(buffers)
    offsets, size = _place(buffers, order)
    for _ in range(rounds):
        if size == bound or not (better := _first_better_swap(buffers, order, size)):
            break
        order, offsets, size = better
    return ArenaLayout(tuple(buffers), tuple(offsets), size)


def verify(layout: ArenaLayout) -> None:
    """Check a layout from scratch.

    Raises:
        RedistillError: two buffers alive together share a byte, or one lies outside the arena.
    """
    placed = list(zip(layout.buffers, layout.offsets, strict=True))
    for i, (one, start) in enumerate(placed):
        if start < 0 or start + one.bytes > layout.arena_bytes:
            raise RedistillError(f"buffer {one.node} at {start} with {one.bytes} bytes lies outside the arena")
        for other, begin in placed[i + 1 :]:
            together = one.born <= other.dies and other.born <= one.dies
            if together and start < begin + other.bytes and begin < start + one.bytes:
                raise RedistillError(f"buffers {one.node} and {other.node} are alive together and overlap")


def _peak_of(buffers: Sequence[Buffer]) -> int:
    return max((sum(b.bytes for b in buffers if b.born <= a.born <= b.dies) for a in buffers), default=0)


def _place(buffers: Sequence[Buffer], order: Sequence[int]) -> tuple[list[int], int]:
    """First fit: each buffer in turn goes to the lowest gap among those alive with it."""
    offsets = [0] * len(buffers)
    done: list[int] = []
    size = 0
    for index in order:
        buffer = buffers[index]
        neighbours = sorted(
            (offsets[i], offsets[i] + buffers[i].bytes)
            for i in done
            if buffers[i].born <= buffer.dies and buffer.born <= buffers[i].dies
        )
        offset = 0
        for start, end in neighbours:
            if offset + buffer.bytes <= start:
                break
            offset = max(offset, end)
        offsets[index] = offset
        size = max(size, offset + buffer.bytes)
        done.append(index)
    return offsets, size


def _first_better_swap(
    buffers: Sequence[Buffer], order: Sequence[int], size: int, window: int = 24
) -> tuple[list[int], list[int], int] | None:
    """Swap two of the largest buffers in the placing order; the first swap that helps."""
    top = min(window, len(order))
    for i in range(top):
        for j in range(i + 1, top):
            swapped = list(order)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            offsets, smaller = _place(buffers, swapped)
            if smaller < size:
                return swapped, offsets, smaller
    return None
