"""How sizes and shapes are written, the same in messages and in reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

KIB, MIB = 1024, 1024**2
SMALLEST_MIB = 0.1  # below this many MiB a size is given in KiB


class Shaped(Protocol):
    """Whatever has a shape."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""


def format_bytes(size: float) -> str:
    """A size in MiB with three decimals; in KiB below 0.1 MiB, in bytes below 1 KiB.

    >>> format_bytes(7225344), format_bytes(4000), format_bytes(100)
    ('6.891 MiB', '3.906 KiB', '100 B')
    """
    if abs(size) >= SMALLEST_MIB * MIB:
        return f"{size / MIB:.3f} MiB"
    return f"{size / KIB:.3f} KiB" if abs(size) >= KIB else f"{size:.0f} B"


def format_shape(shape: Sequence[int]) -> str:
    """Sides joined by an x: ``1x64x56x56``."""
    return "x".join(map(str, shape)) or "scalar"


def format_shapes(inputs: Iterable[Shaped]) -> str:
    """The shapes of several inputs: ``1x3x224x224 and 1``."""
    return " and ".join(format_shape(x.shape) for x in inputs)
