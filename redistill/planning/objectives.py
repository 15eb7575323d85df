"""Objectives: what makes one plan that fits better than another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redistill.errors import ModelError
from redistill.planning.problem import PlanningProblem

FIDELITY = "fidelity"
OBJECTIVES = ("macs", "earliest", FIDELITY)


@dataclass(frozen=True)
class Objective:
    """What makes one feasible plan better than another: a score added over stages.

    ``falling`` rules out a factor larger than that of the stage before, but for the stems.
    """

    name: str
    scores: Callable[[PlanningProblem], tuple[np.ndarray, ...]]
    falling: bool = False
    stems: frozenset[int] = frozenset()


def keep_most_macs() -> Objective:
    """The student that computes most is, in practice, the most accurate."""
    return Objective("macs", lambda problem: problem.macs)


def pool_earliest(stems: Sequence[int]) -> Objective:
    """As the paper does: all pooling into the stem, as little as will do, and given back as late as strides allow."""

    def scores(problem: PlanningProblem) -> tuple[np.ndarray, ...]:
        weight = 16.0 * len(problem.choices)
        return tuple(np.log2(c) * (-weight if s in stems else 1.0) for s, c in enumerate(problem.choices))

    return Objective("earliest", scores, falling=True, stems=frozenset(stems))


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


def score_choices(problem: PlanningProblem, objective: Objective) -> tuple[np.ndarray, ...]:
    """The scores of each stage's choices.

    Raises:
        ModelError: the objective does not give one for each.
    """
    found = tuple(np.asarray(scores, dtype=float) for scores in objective.scores(problem))
    wanted = [(len(choices),) for choices in problem.choices]
    if [scores.shape for scores in found] != wanted:
        raise ModelError(
            f"the objective {objective.name} must give one score for each choice of each stage, "
            f"arrays of {wanted}, and gives {[scores.shape for scores in found]}"
        )
    return found


def allowed_pairs(problem: PlanningProblem, objective: Objective) -> dict[tuple[int, int], np.ndarray]:
    """The legal pairs of choices, less those that the objective rules out."""
    if not objective.falling:
        return problem.legal
    tables = dict(problem.legal)
    for (a, b), table in problem.legal.items():
        if a < b and b not in objective.stems:
            tables[a, b] = table & (np.array(problem.choices[b])[None, :] <= np.array(problem.choices[a])[:, None])
    return tables
