"""A pooling plan as a user sees it, and why no better one fits."""

from __future__ import annotations

from dataclasses import dataclass

from redistill.internal.text import MIB


@dataclass(frozen=True)
class Certificate:
    """Why no better plan of the lattice fits: the search visited ``visited`` nodes and ruled the rest out by bounds.

    ``excluded`` better plans were carried out and found not to hold (an operation could not take its stride, or grids
    that do not divide made the graph a little larger than the plan).
    """

    lattice: int
    visited: int
    best_score: float
    excluded: int = 0

    def __str__(self) -> str:
        also = f", {self.excluded} better ones did not hold when carried out" if self.excluded else ""
        return f"optimal among {self.lattice} plans (proved by visiting {self.visited} nodes of the search tree{also})"


@dataclass(frozen=True)
class PoolingPlan:
    """A plan as a user sees it: one factor a stage in data-flow order, and what it reaches once carried out.

    ``factors`` speaks of the free stages, ``by_stage`` of all of them; ``peak_bytes`` is that of the rewritten graph,
    RED blocks included; ``macs_kept`` is what is left of the teacher's own multiply-accumulates, without
    what RED blocks add and what patches compute twice.
    """

    factors: tuple[int, ...]
    by_stage: tuple[int, ...]
    peak_bytes: int
    macs_kept: float
    objective: str
    limit: int | None
    certificate: Certificate | None
    teacher_bytes: int = 0
    convention: str = "deploy"

    def __str__(self) -> str:
        factors = ", ".join(map(str, self.factors)) or "no factors"
        sizes = f"{self.teacher_bytes / MIB:.3f} -> {self.peak_bytes / MIB:.3f} MiB"
        return f"{factors}: {sizes} ({self.convention}), {self.macs_kept:.0%} of the MACs".replace("%", " %")
