"""The ladder of levers: from the teacher's peak down, what each way to need less memory saves and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redistill.report.data import Comparison, red_macs


@dataclass(frozen=True)
class Rung:
    """A lever: the peak that it leads to, in bytes, and what it costs, in words."""

    lever: str
    bytes: int
    cost: str


def find_ladder(comparison: Comparison) -> tuple[Rung, ...]:
    """The rungs from the network with nothing in place down to the student."""
    return tuple(_rungs(comparison))


def _rungs(c: Comparison) -> Iterator[Rung]:
    if c.nothing_in_place is not None:
        yield Rung("nothing in place", c.nothing_in_place, "")
    counted = "in place" if c.convention.overwrites else "as counted"
    if c.own_order is not None:
        yield Rung(f"{counted}, in its own order", c.own_order, "")
    order = "in this order" if c.own_order is None else "in the order of least memory"
    yield Rung(f"{counted}, {order}", c.teacher.peak_bytes, "")
    patched = c.patches is not None and bool(c.patches.regions)
    if any(factor > 1 for factor in c.plan.factors) or c.taps:
        kept = f"{c.plan.macs_kept:.1%} of the MACs kept, accuracy".replace("%", " %")
        red = red_macs(c.student) / max(c.teacher.macs, 1)
        more = f"; RED blocks add {red:.1%}".replace("%", " %") if red else ""
        before = c.patches.whole_bytes if patched and c.patches else c.student.peak_bytes
        yield Rung("pooling", before, kept + more)
    if patched and c.patches is not None:
        extra = f"{c.patches.extra_macs / max(c.teacher.macs, 1):+.2%} MACs, outputs unchanged".replace("%", " %")
        yield Rung("patches", c.student.peak_bytes, extra)
