"""The best pooling plan under a budget, found exactly by branch and bound over the lattice of plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from redistill.planning.objectives import Objective, allowed_pairs, keep_most_macs, score_choices
from redistill.planning.plan import Certificate
from redistill.planning.problem import ConditionalRows, Matrix, PlanningProblem


@dataclass(frozen=True)
class Solution:
    """A plan as indices into each stage's choices, its peak in bytes, and the proof."""

    plan: tuple[int, ...]
    peak_bytes: float
    certificate: Certificate = field(compare=False)


def solve(problem: PlanningProblem, limit: float, objective: Objective) -> Solution | None:
    """The feasible plan of highest score, ties going to the one that pools least; None if none fits.

    A map that nothing computes on (resized again, say) has no score, and no reason to lose its cells. Further ties go
    to the lower peak, then to pooling earlier.
    """
    search = _Search(problem, score_choices(problem, objective), allowed_pairs(problem, objective))
    return search.run(limit)


def least_peak(problem: PlanningProblem) -> Solution | None:
    """The legal plan of lowest peak, and of those the one that keeps most MACs; None if no plan is legal.

    Large factors are tried first, which soon leaves little to beat.
    """
    coarse_first = tuple(np.array(choices, dtype=float) for choices in problem.choices)
    found = _Search(problem, coarse_first, problem.legal, shrink=True).run(math.inf)
    return found and solve(problem, found.peak_bytes, keep_most_macs())


class _Search:
    """Depth-first branch and bound over stages in data-flow order."""

    def __init__(
        self,
        problem: PlanningProblem,
        scores: tuple[np.ndarray, ...],
        legal: dict[tuple[int, int], np.ndarray],
        shrink: bool = False,
    ) -> None:
        self.problem = problem
        self.scores = scores
        self.shrink = shrink
        self.count = len(problem.choices)
        self.constant, self.usage = _without_dominated_steps(problem)
        self.tables = [[(a, t) for (a, b), t in _symmetric(legal) if b == s] for s in range(self.count)]
        smallest = [u.min(axis=0) for u in self.usage]
        self.least_after = [sum(smallest[s:], np.zeros_like(self.constant)) for s in range(self.count + 1)]
        self.most_after = [sum(float(x.max()) for x in scores[s:]) for s in range(self.count + 1)]
        self.conditional = self._conditional_bounds()
        self.floor = self._floor(legal)
        self.visited = 0
        self.best: tuple[float, float, tuple[int, ...]] | None = None

    def run(self, limit: float) -> Solution | None:
        """Search below ``limit`` bytes."""
        self.limit = limit
        if self.floor <= limit:
            self._extend((), self.constant, 0.0)
        if self.best is None:
            return None
        score, peak, plan = self.best
        return Solution(plan, peak, Certificate(self.problem.size, self.visited, score))

    def _extend(self, plan: tuple[int, ...], used: np.ndarray, score: float) -> None:
        self.visited += 1
        stage = len(plan)
        if stage == self.count:
            self._consider(plan, score)
            return
        for choice in np.argsort(-self.scores[stage], kind="stable"):
            total = used + self.usage[stage][choice]
            reached = score + float(self.scores[stage][choice])
            least = float((total + self.least_after[stage + 1]).max(initial=0))
            if (
                self._may_win(stage, least, reached)
                and self._is_legal(stage, plan, int(choice))
                and self._may_win(stage, self._least_conditional((*plan, int(choice))), reached)
            ):
                self._extend((*plan, int(choice)), total, reached)

    def _may_win(self, stage: int, least: float, score: float) -> bool:
        """Whether a plan begun so, of ``least`` bytes or more, can still be the best."""
        if least > self.limit:
            return False
        if self.best is None:
            return True
        if self.shrink:
            return max(least, self.floor) < self.best[1]
        return score + self.most_after[stage + 1] >= self.best[0] - _slack(self.best[0])

    def _conditional_bounds(self) -> list[list[tuple[ConditionalRows, np.ndarray]]]:
        """By the stage that decides whether they hold: conditional rows, and the least that later stages add."""
        found: list[list[tuple[ConditionalRows, np.ndarray]]] = [[] for _ in range(self.count)]
        for rows in self.problem.conditional:
            last = max(rows.source, rows.target)
            later = [usage.min(axis=0) for usage in rows.usage[last + 1 :]]
            found[last].append((rows, sum(later, np.zeros(rows.usage[0].shape[1]))))
        return found

    def _floor(self, legal: dict[tuple[int, int], np.ndarray]) -> float:
        """What every plan needs at least: that of the two stages of some conditional rows, at their best together."""
        floor = float((self.constant + self.least_after[0]).max(initial=0))
        pairs: dict[tuple[int, int], list[ConditionalRows]] = {}
        for rows in self.problem.conditional:
            pairs.setdefault((rows.source, rows.target), []).append(rows)
        for (a, b), several in pairs.items():
            if a == b:
                continue
            needs = _least_of_pair(self.usage, self.constant, a, b)
            for rows in several:
                own = _least_of_pair(rows.usage, np.zeros(rows.usage[0].shape[1]), a, b)
                needs = np.maximum(needs, np.where(rows.active, own, 0.0))
            allowed = legal.get((a, b), legal[b, a].T if (b, a) in legal else np.ones_like(needs, dtype=bool))
            floor = max(floor, float(needs[allowed].min(initial=math.inf)))
        return floor

    def _least_conditional(self, begun: tuple[int, ...]) -> float:
        """The least that the rows need which the last stage of a plan begun so decides on."""
        least = 0.0
        for rows, later in self.conditional[len(begun) - 1]:
            if rows.active[begun[rows.source], begun[rows.target]]:
                steps = sum((usage[i] for usage, i in zip(rows.usage, begun, strict=False)), later)
                least = max(least, float(steps.max(initial=0)))
        return least

    def _is_legal(self, stage: int, plan: tuple[int, ...], choice: int) -> bool:
        if not all(table[plan[other], choice] for other, table in self.tables[stage] if other < stage):
            return False
        begun = (*plan, choice)
        return not any(
            all(begun[s] == i for s, i in part) for part in self.problem.forbidden if part and part[-1][0] == stage
        )

    def _consider(self, plan: tuple[int, ...], score: float) -> None:
        peak = self.problem.peak(plan)
        if peak > self.limit or plan in self.problem.excluded:
            return
        if self.best is None or self._rank(score, peak, plan) > self._rank(*self.best):
            self.best = (score, peak, plan)

    def _rank(self, score: float, peak: float, plan: tuple[int, ...]) -> tuple[float, ...]:
        return (-peak,) if self.shrink else (round(score, 6), -self.problem.pooling(plan), -peak, *plan)


def _least_of_pair(usage: Sequence[Matrix], constant: np.ndarray, a: int, b: int) -> Matrix:
    """The least peak at each choice of two stages: choices of ``a`` x choices of ``b``."""
    others = sum((u.min(axis=0) for s, u in enumerate(usage) if s not in (a, b)), constant)
    least: Matrix = (others + usage[a][:, None] + usage[b][None]).max(axis=2, initial=0)
    return least


def _slack(score: float) -> float:
    return 1e-9 * abs(score)


def _symmetric(legal: dict[tuple[int, int], np.ndarray]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Each table once for either order, so that it is checked when the later of its two stages is assigned."""
    for (a, b), table in legal.items():
        yield (a, b), table
        yield (b, a), table.T


def _without_dominated_steps(problem: PlanningProblem) -> tuple[np.ndarray, list[Matrix]]:
    """Only the steps that can be the peak of some plan: no other step is at least as large at every choice."""
    # A step is a row: its constant bytes, then its bytes of each stage at each factor. Whatever the plan, the bytes
    # of a step are a sum of one entry from each stage's part of its row; so a row that is nowhere above another one
    # can never be the only peak, and leaving it out changes no plan's peak. Rows are looked at by falling sum, since
    # only a row of larger sum can stand above another one: one pass keeps exactly the rows that nothing stands above.
    # Of a network of hundreds of operations a dozen are left, which is why a plan is judged in microseconds.
    features = np.unique(np.vstack([problem.constant[None], *problem.usage]).T, axis=0)
    order = np.argsort(-features.sum(axis=1))
    kept: list[np.ndarray] = []
    for row in features[order]:
        if not any((row <= other).all() for other in kept):
            kept.append(row)
    columns = np.array(kept).T.reshape(features.shape[1], -1)
    splits = np.cumsum([1, *(len(u) for u in problem.usage)])[:-1]
    constant, *usage = np.split(columns, splits)
    return constant[0], usage
