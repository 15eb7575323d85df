"""Candidates: the plans worth fitting to the teacher and judging, and the student of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, product

from redistill.compiler.analysis import Analysis
from redistill.compiler.choosing import Choice, carry_out_within, planning_problem, resized_plans
from redistill.compiler.levers import carry_out_patched, own_weights, teacher_segmenter
from redistill.compiler.request import Request
from redistill.internal.collecting import collecting_only_new
from redistill.planning.objectives import keep_most_macs
from redistill.planning.patches.joint import PatchBound, plans_by_score
from redistill.planning.problem import FACTORS, PlanningProblem
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import solve

MOST = 16
"""Plans that are tried at most."""

LATTICE = 50_000
"""Plans that are enumerated; of larger lattices only the best at several limits are tried."""

Plan = tuple[int, ...]
Candidates = dict[Plan, Callable[[], Choice | None]]
"""What makes the student of each plan (one factor for each stage); None if it does not fit after all."""


def find_candidates(analysis: Analysis, request: Request, limit: int, seconds: float) -> Candidates:
    """The plans worth trying by the request's levers, those that keep most MACs first.

    Where patches are among them, ``seconds`` is when no further plan is sought once there is one.
    """
    if "patches" in request.levers:
        fitting = _fitting_with_patches(analysis, request, limit, time.monotonic() + seconds)
        return {plan: partial(own_weights, choice) for plan, choice in fitting.items()}
    pools = "pool" in request.levers
    plans = candidates(planning_problem(analysis), limit) if pools else resized_plans(analysis)
    return {plan: partial(carry_out_within, analysis, plan, limit, request) for plan in plans}


def candidates(problem: PlanningProblem, limit: float) -> list[Plan]:
    """The plans worth trying within ``limit`` bytes, as factors, those that keep most MACs first.

    Plans that no other betters both in bytes and in MACs; and smaller images whose grid comes back at each of the
    stages, or never.
    """
    found = _enumerated(problem, limit) if problem.size <= LATTICE else _solved(problem, limit)
    found.sort(key=lambda plan: (-problem.total_macs(plan), problem.pooling(plan), problem.peak(plan)))
    best, front = float("inf"), []
    mildest = {problem.total_macs(plan): plan for plan in reversed(found)}
    for plan in reversed(mildest.values()):
        if problem.peak(plan) < best:
            best = problem.peak(plan)
            front.append(plan)
    smaller = _smaller_images(problem, found)
    chosen = list(dict.fromkeys([*front[: MOST - len(smaller)], *smaller]))
    return [problem.factors(plan) for plan in sorted(chosen, key=problem.total_macs, reverse=True)]


def _enumerated(problem: PlanningProblem, limit: float) -> list[Plan]:
    lattice = product(*(range(len(choices)) for choices in problem.choices))
    return [plan for plan in lattice if problem.is_legal(plan) and problem.peak(plan) <= limit]


def _solved(problem: PlanningProblem, limit: float) -> list[Plan]:
    solutions = (solve(problem, limit * share, keep_most_macs()) for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3))
    return list(dict.fromkeys(solution.plan for solution in solutions if solution is not None))


def _smaller_images(problem: PlanningProblem, found: Sequence[Plan]) -> list[Plan]:
    """Of each of the two mildest factors: it up to each stage, and behind it what keeps most MACs.

    They keep few MACs; but a network on a smaller image computes what it has learnt to compute, of things half as far
    away, where unequal factors change what every kernel sees.
    """
    free = [stage for stage, choices in enumerate(problem.choices) if len(choices) > 1]
    factors = {plan: problem.factors(plan) for plan in found}
    families: list[list[Plan]] = []
    for factor in FACTORS[1:]:
        up_to = (
            [plan for plan in found if all(factors[plan][stage] == factor for stage in free[:count])]
            for count in range(len(free), 0, -1)
        )
        families.append([plans[0] for plans in up_to if plans])  # those found are sorted by what they keep
    return list(dict.fromkeys(chain.from_iterable(islice(filter(None, families), 2))))


@collecting_only_new()
def _fitting_with_patches(analysis: Analysis, request: Request, limit: int, ends: float) -> dict[Plan, Choice]:
    """Plans that patches bring under the limit: the one of most MACs, each of less memory after it, uniform ones."""
    model = ScalingModel(
        analysis.stages, analysis.convention, candidate_factors(analysis.stages, restore_deepest=False)
    )
    problem = model.problem()
    bound = PatchBound(model, teacher_segmenter(analysis, request.max_extra_macs))
    found: dict[Plan, Choice] = {}
    least = limit + 1.0
    falling = _by_macs(problem) if "pool" in request.levers else _resized(analysis, problem)
    for plan, is_uniform in chain(((p, False) for p in falling), ((p, True) for p in _uniform(problem))):
        if len(found) == MOST or (found and time.monotonic() > ends):
            break
        need, by_stage = bound.of(plan), problem.factors(plan)
        if by_stage not in found and need <= limit and (is_uniform or need < least):
            choice = carry_out_patched(analysis, request, limit, by_stage)
            if choice is not None:
                found[by_stage] = choice
                least = min(least, need)
    return found


def _by_macs(problem: PlanningProblem) -> Iterator[Plan]:
    return (plan for plan, _ in islice(plans_by_score(problem, keep_most_macs()), LATTICE))


def _uniform(problem: PlanningProblem) -> Iterator[Plan]:
    """The two mildest plans with one factor, above 1, throughout."""
    factors = sorted({f for choices in problem.choices for f in choices} - {1})
    able = (f for f in factors if all(f in choices for choices in problem.choices if len(choices) > 1))
    plans = (tuple(choices.index(f) if len(choices) > 1 else 0 for choices in problem.choices) for f in able)
    yield from islice(filter(problem.is_legal, plans), 2)


def _resized(analysis: Analysis, problem: PlanningProblem) -> Iterator[Plan]:
    for plan in resized_plans(analysis):
        yield tuple(choices.index(factor) for choices, factor in zip(problem.choices, plan, strict=True))
