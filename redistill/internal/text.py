"""How sizes and shapes are written, the same in messages and in reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

KIB, MIB = 1024, 1024**2
LONGEST_NAME = 36
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


def format_count(count: float) -> str:
    """A count in G, M or K with three decimals; as it is below a thousand.

    >>> format_count(1814073344), format_count(11689512), format_count(12)
    ('1.814 G', '11.690 M', '12')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= unit:
            return f"{count / unit:.3f} {sign}"
    return f"{count:.0f}"


def format_share(part: float, whole: float) -> str:
    """``part`` as a percentage of ``whole``."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """``name`` with its middle left out where it is too long.

    >>> shorten("features.denseblock1", 11)
    'featu…lock1'
    """
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"


def list_some(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are.

    >>> list_some("abcdef", 2)
    'a, b and 4 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
