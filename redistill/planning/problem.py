"""The planning problem alone, free of graphs: stages, their choices of factor, and what a plan needs and computes.

With A[t, s](d) the bytes alive at step t that belong to stage s at pooling factor d, and M[s](d) its operations,

    peak(d) = max_t sum_s A[t, s](d_s)          MACs(d) = sum_s M[s](d_s)

so a plan is judged by adding a few vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from redistill.errors import PlanError

FACTORS = (1, 2, 4, 8, 16)
BETWEEN = (3, 5, 6)  # factors for grids that they divide: on others a side rounded up would meet one that is not
Matrix = np.ndarray  # choices x steps
Forbidden = frozenset[tuple[tuple[int, int], ...]]  # choices (stage, index) that do not go together


@dataclass(frozen=True)
class ConditionalRows:
    """Steps that exist only for some pairs of factors: a tap where the student changes its grid, a tail's shuffle."""

    name: str
    source: int
    target: int
    active: np.ndarray  # choices of source x choices of target, boolean
    usage: tuple[Matrix, ...]  # for each stage: choices x steps


@dataclass(frozen=True)
class PlanningProblem:
    """The optimisation alone, free of graphs: stages by index, their choices of factor, bytes, operations, legality."""

    choices: tuple[tuple[int, ...], ...]
    constant: np.ndarray  # bytes at each step that no factor changes
    usage: tuple[Matrix, ...]  # for each stage: choices x steps, bytes
    macs: tuple[np.ndarray, ...]  # for each stage: choices
    legal: dict[tuple[int, int], np.ndarray]  # (source, target): choices x choices, boolean
    conditional: tuple[ConditionalRows, ...] = ()
    excluded: frozenset[tuple[int, ...]] = frozenset()  # plans that turned out not to fit when carried out
    forbidden: Forbidden = frozenset()  # parts of plans that turned out not to fit

    @property
    def size(self) -> int:
        """Number of plans in the lattice, legal or not."""
        return math.prod(len(c) for c in self.choices)

    def peak(self, plan: Sequence[int]) -> float:
        """Peak bytes of a complete plan, given as an index into each stage's choices."""
        total = self.constant + sum(u[i] for u, i in zip(self.usage, plan, strict=True))
        peak = float(total.max(initial=0))
        for rows in self.conditional:
            if rows.active[plan[rows.source], plan[rows.target]]:
                steps = sum(u[i] for u, i in zip(rows.usage, plan, strict=True))
                peak = max(peak, float(np.max(steps, initial=0)))
        return peak

    def total_macs(self, plan: Sequence[int]) -> float:
        """Multiply-accumulates of a complete plan."""
        return float(sum(m[i] for m, i in zip(self.macs, plan, strict=True)))

    def pooling(self, plan: Sequence[int]) -> int:
        """How much is pooled in all: the product of the factors of a complete plan."""
        return math.prod(self.factors(plan))

    def is_legal(self, plan: Sequence[int]) -> bool:
        """Whether every transition can be given the stride the plan asks for."""
        if tuple(plan) in self.excluded or any(all(plan[s] == i for s, i in part) for part in self.forbidden):
            return False
        return all(table[plan[a], plan[b]] for (a, b), table in self.legal.items())

    def enumerate(self) -> Iterator[tuple[int, ...]]:
        """Every legal plan: the exhaustive search that the exact one is tested against."""
        return (plan for plan in product(*(range(len(c)) for c in self.choices)) if self.is_legal(plan))

    def factors(self, plan: Sequence[int]) -> tuple[int, ...]:
        """The plan as pooling factors."""
        return tuple(c[i] for c, i in zip(self.choices, plan, strict=True))


def plan_from_factors(problem: PlanningProblem, factors: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
    """The plan with exactly these factors.

    Raises:
        PlanError: a factor that its stage does not allow, or a pair no transition can take; the stage is named.
    """
    plan = []
    for factor, choices, name in zip(factors, problem.choices, names, strict=True):
        if factor not in choices:
            raise PlanError(f"stage {name} cannot take factor {factor}; it allows {', '.join(map(str, choices))}")
        plan.append(choices.index(factor))
    for (a, b), table in problem.legal.items():
        if not table[plan[a], plan[b]]:
            raise PlanError(
                f"no stride leads from {names[a]} at factor {factors[a]} to {names[b]} at factor {factors[b]}; "
                "from one stage to the next a factor can fall by no more than the stride between them"
            )
    return tuple(plan)
