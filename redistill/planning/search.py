"""Planning: the best pooling plan under a budget, found exactly.

With A[t, s](d) the bytes alive at step t that belong to stage s at pooling factor d, and M[s](d) its operations,

    peak(d) = max_t sum_s A[t, s](d_s)          MACs(d) = sum_s M[s](d_s)

so a plan is judged by adding a few vectors, and branch and bound over the lattice of plans is exact and quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from redistill.errors import ModelError, PlanError
from redistill.internal.text import MIB

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


@dataclass(frozen=True)
class Objective:
    """What makes one feasible plan better than another: a score added over stages.

    ``falling`` rules out a factor larger than that of the stage before, but for the stems.
    """

    name: str
    scores: Callable[[PlanningProblem], tuple[np.ndarray, ...]]
    falling: bool = False
    stems: frozenset[int] = frozenset()


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


@dataclass(frozen=True)
class Solution:
    """A plan as indices into each stage's choices, its peak in bytes, and the proof."""

    plan: tuple[int, ...]
    peak_bytes: float
    certificate: Certificate = field(compare=False)


def keep_most_macs() -> Objective:
    """The student that computes most is, in practice, the most accurate."""
    return Objective("macs", lambda problem: problem.macs)


def pool_earliest(stems: Sequence[int]) -> Objective:
    """As the paper does: all pooling into the stem, as little as will do, and given back as late as strides allow."""

    def scores(problem: PlanningProblem) -> tuple[np.ndarray, ...]:
        weight = 16.0 * len(problem.choices)
        return tuple(np.log2(c) * (-weight if s in stems else 1.0) for s, c in enumerate(problem.choices))

    return Objective("earliest", scores, falling=True, stems=frozenset(stems))


FIDELITY = "fidelity"
OBJECTIVES = ("macs", "earliest", FIDELITY)


def as_objective(given: Any) -> Objective:
    """Take an objective, or a function that gives its scores: of a problem, one array for each stage's choices.

    Raises:
        ModelError: neither.

    Example:
        >>> as_objective(lambda problem: problem.macs).name
        '<lambda>'
    """
    if isinstance(given, Objective):
        return given
    if not callable(given):
        raise ModelError(f"{given!r} is no objective; give a word, an Objective, or a function that gives its scores")
    return Objective(getattr(given, "__name__", type(given).__name__), given)


def solve(problem: PlanningProblem, limit: float, objective: Objective) -> Solution | None:
    """The feasible plan of highest score, ties going to the one that pools least; None if none fits.

    A map that nothing computes on (resized again, say) has no score, and no reason to lose its cells. Further ties go
    to the lower peak, then to pooling earlier.
    """
    search = _Search(problem, _scores(problem, objective), _allowed(problem, objective))
    return search.run(limit)


def _scores(problem: PlanningProblem, objective: Objective) -> tuple[np.ndarray, ...]:
    found = tuple(np.asarray(scores, dtype=float) for scores in objective.scores(problem))
    wanted = [(len(choices),) for choices in problem.choices]
    if [scores.shape for scores in found] != wanted:
        raise ModelError(
            f"the objective {objective.name} must give one score for each choice of each stage, "
            f"arrays of {wanted}, and gives {[scores.shape for scores in found]}"
        )
    return found


def least_peak(problem: PlanningProblem) -> Solution | None:
    """The legal plan of lowest peak, and of those the one that keeps most MACs; None if no plan is legal.

    Large factors are tried first, which soon leaves little to beat.
    """
    coarse_first = tuple(np.array(choices, dtype=float) for choices in problem.choices)
    found = _Search(problem, coarse_first, problem.legal, shrink=True).run(math.inf)
    return found and solve(problem, found.peak_bytes, keep_most_macs())


def _allowed(problem: PlanningProblem, objective: Objective) -> dict[tuple[int, int], np.ndarray]:
    if not objective.falling:
        return problem.legal
    tables = dict(problem.legal)
    for (a, b), table in problem.legal.items():
        if a < b and b not in objective.stems:
            tables[a, b] = table & (np.array(problem.choices[b])[None, :] <= np.array(problem.choices[a])[:, None])
    return tables


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
