"""Budgets of peak activation memory: ``4x``, ``25%``, ``512KiB``, ``0.5MB`` or plain bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from redistill.errors import BudgetError

_UNITS = {
    "B": 1,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3,
}  # fmt: skip
_FORM = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]{1,3})?)\s*(x|%|(?:[kmg]i?)?b)?", re.IGNORECASE | re.ASCII)
_LONGEST = 40
"""Characters of a budget: the pattern needs time that grows with their square."""
_ACCEPTED = "accepted are a reduction (4x, 2.5x), a share (25%), a size (512KiB, 0.5MB, 2MiB) or bytes (524288B)"


@dataclass(frozen=True)
class Budget:
    """An upper limit, absolute in ``bytes`` or as a ``share`` of the teacher's peak; exactly one is set."""

    text: str
    bytes: int | None = None
    share: float | None = None

    def limit(self, teacher_peak: int) -> int:
        """The limit in bytes for a teacher that peaks at ``teacher_peak`` bytes."""
        return self.bytes if self.bytes is not None else math.floor(teacher_peak * (self.share or 0.0) + 1e-6)


def parse_budget(budget: str | int | Budget) -> Budget:
    """Read a budget; an ``int`` is bytes, and so is a text of at least four digits.

    Raises:
        BudgetError: the text is none of the accepted forms; the message lists them.

    Example:
        >>> parse_budget("4x").limit(4096), parse_budget("25%").limit(4096), parse_budget("1KiB").limit(4096)
        (1024, 1024, 1024)
    """
    if isinstance(budget, Budget):
        return budget
    text = _as_text(budget)
    match = re.fullmatch(_FORM, text) if len(text) <= _LONGEST else None
    if isinstance(budget, bool) or not match:
        raise BudgetError(f"cannot read the budget {text[:_LONGEST]!r}; {_ACCEPTED}")
    number, unit = float(match[1]), (match[2] or "").upper()
    if not math.isfinite(number) or number <= 0:
        raise BudgetError(f"the budget {text!r} must be above zero; {_ACCEPTED}")
    if unit == "X":
        return _share(text, 1 / number)
    if unit == "%":
        return _share(text, number / 100)
    if not unit and number < 1000:
        raise BudgetError(f"the budget {text!r} has no unit: {text}x or {text}B? {_ACCEPTED}")
    size = Fraction(match[1]) * _UNITS[unit or "B"]  # exact: as a float 1.001KB would be one byte less
    if size < 1:
        raise BudgetError(f"the budget {text!r} is less than one byte; {_ACCEPTED}")
    return Budget(text, bytes=math.floor(size))


def _as_text(budget: object) -> str:
    """A budget as written; an ``int``, in bytes."""
    if type(budget) is not int:
        return str(budget).strip()
    return f"{budget}B" if budget.bit_length() < 4 * _LONGEST else "a number of more digits than fit"


def _share(text: str, share: float) -> Budget:
    if share > 1:
        raise BudgetError(f"the budget {text!r} is more than the teacher needs; {_ACCEPTED}")
    return Budget(text, share=share)
