"""A method's share in the sum of losses."""

from __future__ import annotations

from dataclasses import dataclass

MAIN = "teacher"
"""The name of the first teacher."""
SHARE_OPTIONS = ("weight", "warmup", "teacher")
"""Options that every method has."""


@dataclass(frozen=True)
class Share:
    """A method's part in the sum: its weight, the epochs over which it rises from 0, and the teacher listened to.

    >>> Share(2.0, warmup=4).at(1)
    0.5
    """

    weight: float
    warmup: float = 0.0
    teacher: str = MAIN

    def at(self, epoch: float) -> float:
        """The weight after so many epochs, which may be a fraction."""
        return self.weight if epoch >= self.warmup else self.weight * epoch / self.warmup
