"""Choosing: the best plan that holds once carried out, with the taps that fit beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redistill.compiler.analysis import Analysis
from redistill.compiler.failures import Failures
from redistill.compiler.request import Request
from redistill.compiler.rewriting import Rewritten, attach, pool, real_grids, rewrite
from redistill.errors import InfeasibleBudgetError, ModelError, PlanError
from redistill.internal.plugins import find
from redistill.internal.text import format_bytes, format_shape
from redistill.memory.lifetimes import MemoryProfile
from redistill.planning.objectives import FIDELITY, Objective, as_objective, keep_most_macs, pool_earliest
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.plan import Certificate
from redistill.planning.problem import FACTORS, PlanningProblem, plan_from_factors
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import least_peak, solve
from redistill.planning.taps import Grids, Tap, choose_taps, resolve_taps
from redistill.tracing.copying import clone

MAX_ATTEMPTS = 64
MAX_LARGER = 8
"""Plans that hold but need more than was planned: so many are tried for the least."""
POOLED_DEEPEST = "no plan fits that keeps the deepest stage's grid; it is pooled as well"
OTHERWISE = "the plan of least memory, which shrinks otherwise than its grids do: a milder one may fit too"
COARSE = 1.75  # a student so many times smaller than was asked for is worth a note
LISTED = 4  # stages that a refusal lists


@dataclass(frozen=True)
class Choice:
    """A plan carried out: one factor for each stage, the taps, the student's graph, and the proof."""

    by_stage: tuple[int, ...]
    taps: tuple[Tap, ...]
    rewritten: Rewritten
    certificate: Certificate | None
    notes: tuple[str, ...] = ()
    patches: PatchPlan | None = None


def choose(analysis: Analysis, request: Request) -> Choice:
    """Choose the plan and the taps that the request asks for: those given, or the best within its budget.

    First all automatic taps are part of the plan and the deepest stage keeps the teacher's grid. Where no plan fits so,
    taps that do not fit are left out, and then the deepest stage may be pooled too; a note says so.

    Raises:
        InfeasibleBudgetError: no plan fits; the message says what stands in the way.
    """
    if request.factors is not None:
        return carry_out(analysis, request.factors, request)
    limit = request.limit(analysis.profile.peak_bytes)
    assert limit is not None, "a request has factors or a budget"
    if "pool" not in request.levers:
        return choose_resized(analysis, request, limit)
    goal = find_objective(request.objective, analysis)
    attempts = [(True, True), (False, True), (True, False), (False, False)]
    with Failures(analysis) as failures:
        for with_taps, restore in attempts if request.taps == "auto" else [(False, True), (False, False)]:
            problem = planning_problem(analysis, with_taps, restore)
            found = _first_that_holds(analysis, problem, limit, goal, request, not with_taps, failures)
            if found is not None:
                notes = (*found.notes, *_coarseness(analysis, found, limit))
                if not restore:
                    notes += (POOLED_DEEPEST,)
                return replace(found, notes=notes)
        by_stage, best = smallest(analysis, failures)
        found = carry_out_within(analysis, by_stage, limit, request) if best.peak_bytes <= limit else None
        if found is not None:
            return replace(found, notes=(*found.notes, OTHERWISE))
        raise InfeasibleBudgetError(explain(analysis, limit, failures, (by_stage, best)))


def _coarseness(analysis: Analysis, found: Choice, limit: int) -> tuple[str, ...]:
    """A word on a student far smaller than was asked for."""
    teacher = analysis.profile.peak_bytes
    asked, reached = teacher / limit, teacher / found.rewritten.profile.peak_bytes
    poolable = [s for s in analysis.stages.free if s.fixed is None]
    if reached < COARSE * asked or asked < 1:
        return ()
    if len(poolable) == 1:
        return (f"{asked:.2f}x asked, {reached:.2f}x is the mildest that fits: all that can be pooled is one stage",)
    return (f"{asked:.2f}x asked, {reached:.2f}x reached: no plan between them computes as much",)


def choose_resized(analysis: Analysis, request: Request, limit: int) -> Choice:
    """Choose the largest image with which the whole network fits.

    Raises:
        InfeasibleBudgetError: none does.
    """
    for by_stage in resized_plans(analysis):
        found = carry_out_within(analysis, by_stage, limit, request)
        if found is not None:
            return found
    raise InfeasibleBudgetError(
        f"no smaller image brings {analysis.name} within {format_bytes(limit)} ({analysis.convention}); the whole one "
        f"is there while it is made smaller, and outputs keep their size; pool as well: levers resize,pool"
    )


def resized_plans(analysis: Analysis) -> list[tuple[int, ...]]:
    """The plans, one factor for each stage, that make the image smaller and leave the network after it as it is.

    A stage that must keep its grid keeps it.
    """
    stages = analysis.stages.stages
    free = [s for s in stages if not (s.fixed or s.boundary)]
    problem = planning_problem(analysis)
    plans = [tuple(factor if s in free else 1 for s in stages) for factor in FACTORS]
    within = [p for p in plans if all(f in c for f, c in zip(p, problem.choices, strict=True))]
    indices = {p: tuple(c.index(f) for f, c in zip(p, problem.choices, strict=True)) for p in within}
    return [p for p in within if problem.is_legal(indices[p])]


def carry_out(analysis: Analysis, factors: Sequence[int], request: Request) -> Choice:
    """The student with exactly these pooling factors, one for each free stage.

    Raises:
        PlanError: a wrong number of factors, or factors that no strides can make.
    """
    by_stage = expand(analysis, factors)
    pooled = pool(analysis, by_stage)
    taps = find_taps(analysis, by_stage, request, real_grids(analysis, pooled))
    return Choice(by_stage, taps, attach(analysis, pooled, taps, request.init, request.passes), None)


def expand(analysis: Analysis, factors: Sequence[int]) -> tuple[int, ...]:
    """One factor for each stage, from one for each free stage; checked."""
    stages, free = analysis.stages.stages, analysis.stages.free
    if len(factors) != len(free):
        names = ", ".join(f"{s.name} {format_shape(s.grid)}" for s in free)
        raise PlanError(f"{analysis.name} has {len(free)} stages ({names}), but {len(factors)} factors were given")
    given = dict(zip((s.index for s in free), factors, strict=True))
    for stage in free:
        if stage.fixed and given[stage.index] != 1:
            raise PlanError(f"stage {stage.name} must keep factor 1, for {stage.fixed}")
        if given[stage.index] > max(stage.grid, default=1):
            raise PlanError(
                f"factor {given[stage.index]:,} is more than stage {stage.name} has places, "
                f"{format_shape(stage.grid)}; choose pooling factors that divide its sides"
            )
    by_stage = tuple(given.get(s.index, 1) for s in stages)
    problem = ScalingModel(analysis.stages, analysis.convention, [(f,) for f in by_stage]).problem()
    plan_from_factors(problem, by_stage, [s.name for s in stages])
    return by_stage


def find_objective(wanted: str | Objective, analysis: Analysis) -> Objective:
    """Ours by its name, or one's own: an :class:`Objective`, or a function that gives its scores."""
    stems = [t.target for t in analysis.stages.transitions if t.kind == "stem"]
    known: dict[str, Objective | None] = {o.name: o for o in (keep_most_macs(), pool_earliest(stems))}
    known[FIDELITY] = None  # no score of plans: it is measured
    found = find(wanted, known, "objective", ModelError) if isinstance(wanted, str) else wanted
    if found is None:
        raise ModelError(f"the objective {FIDELITY} compares students on images; use transform(calibration=images)")
    return as_objective(found)


def planning_problem(analysis: Analysis, with_taps: bool = False, restore_deepest: bool = False) -> PlanningProblem:
    """The plans of a teacher, with the memory of RED blocks or without; the deepest stage may keep its grid."""
    choices = candidate_factors(analysis.stages, restore_deepest)
    model = ScalingModel(analysis.stages, analysis.convention, choices)
    return model.problem(analysis.crossings if with_taps else ())


def _first_that_holds(
    analysis: Analysis,
    problem: PlanningProblem,
    limit: int,
    goal: Objective,
    request: Request,
    drop_taps: bool,
    failures: Failures,
) -> Choice | None:
    """Go down the plans from the best until one, carried out, stays within the limit."""
    for _ in range(MAX_ATTEMPTS):
        problem = replace(problem, forbidden=failures.forbidden(problem))
        if failures.out_of_time:
            return None
        solution = solve(problem, limit, goal)
        if solution is None:
            return None
        by_stage = problem.factors(solution.plan)
        found = carry_out_within(analysis, by_stage, limit, request, drop_taps, failures)
        if found is not None:
            return replace(found, certificate=replace(solution.certificate, excluded=len(problem.excluded)))
        problem = replace(problem, excluded=problem.excluded | {solution.plan})
    return None


def carry_out_within(
    analysis: Analysis,
    by_stage: tuple[int, ...],
    limit: int,
    request: Request,
    drop_taps: bool = True,
    failures: Failures | None = None,
) -> Choice | None:
    """The student with these factors, one for each stage; None if no student with them stays within ``limit`` bytes.

    With ``drop_taps``, automatic taps that do not fit are left out, the costliest first.
    """
    failures = failures or Failures(analysis)
    try:
        pooled = pool(analysis, by_stage)
        taps = list(find_taps(analysis, by_stage, request, real_grids(analysis, pooled)))
        dropped: list[str] = []
        while True:
            may_drop = drop_taps and taps and request.taps == "auto"
            student = clone(pooled) if may_drop else pooled
            rewritten = attach(analysis, student, taps, request.init, request.passes)
            if rewritten.profile.peak_bytes <= limit:
                notes = (f"taps left out, their RED blocks do not fit: {', '.join(dropped)}",) if dropped else ()
                return Choice(by_stage, tuple(taps), rewritten, None, notes)
            if not may_drop:
                failures.too_large(by_stage, rewritten.profile)
                return None
            costliest = max(taps, key=lambda t: t.channels * math.prod(t.grid))
            taps.remove(costliest)
            dropped.append(costliest.student)
    except PlanError as error:
        failures.note(error, by_stage)
        return None


def find_taps(analysis: Analysis, by_stage: Sequence[int], request: Request, grids: Grids) -> tuple[Tap, ...]:
    """The taps that a request asks for, given the pooling factors and the grids that they made."""
    if request.taps == "none":
        return ()
    if request.taps == "auto":
        return choose_taps(analysis.crossings, by_stage, analysis.stages, grids)
    assert not isinstance(request.taps, str), "files are read when a request is made"
    return resolve_taps(request.taps, analysis.graph_module, by_stage, analysis.stages, grids)


def explain(
    analysis: Analysis,
    limit: int,
    failures: Failures | None = None,
    least: tuple[tuple[int, ...], MemoryProfile] | None = None,
) -> str:
    """Why no plan fits: the best that can be had, what is alive at its peak, what may not shrink, and what failed."""
    failures = failures or Failures(analysis)
    by_stage, best = least or smallest(analysis, failures)
    alive = ", ".join(f"{b.module or b.node} {format_shape(b.shape)} {format_bytes(b.bytes)}" for b in best.live[:4])
    factors = ",".join(str(by_stage[s.index]) for s in analysis.stages.free)
    where = f"at factors {factors}" if any(f > 1 for f in by_stage) else "at the teacher's own grids"
    return (
        f"no student of {analysis.name} fits {format_bytes(limit)} ({analysis.convention}); the best that can be had "
        f"is {format_bytes(best.peak_bytes)}, {analysis.profile.peak_bytes / best.peak_bytes:.2f}x, {where}: "
        f"at {best.peak_node} are alive {alive}; {_what_is_fixed(analysis)}{failures.summary()}"
    )


def _what_is_fixed(analysis: Analysis) -> str:
    """The stages that no plan may pool, and why."""
    fixed = [f"{s.name} cannot be pooled, for {s.fixed}" for s in analysis.stages.stages if s.fixed]
    if not analysis.stages.stages:
        return "no side of an input is one that a convolution or pool slides over"
    more = f"; and {len(fixed) - LISTED} more" if len(fixed) > LISTED else ""
    return "; ".join(fixed[:LISTED]) + more


def smallest(analysis: Analysis, failures: Failures | None = None) -> tuple[tuple[int, ...], MemoryProfile]:
    """The plan of least peak that holds once carried out, without taps; the teacher's own grids always do.

    What is carried out may need more than was planned, so plans are tried until none is planned to need less.
    """
    failures = failures or Failures(analysis)
    best = tuple(1 for _ in analysis.stages.stages), analysis.profile
    if failures.least is not None and failures.least[1].peak_bytes < best[1].peak_bytes:
        best = failures.least
    problem, larger = planning_problem(analysis, with_taps=False, restore_deepest=False), 0
    for _ in range(MAX_ATTEMPTS):
        problem = replace(problem, forbidden=failures.forbidden(problem))
        solution = None if failures.out_of_time or larger == MAX_LARGER else least_peak(problem)
        if solution is None or solution.peak_bytes >= best[1].peak_bytes:
            break
        by_stage = problem.factors(solution.plan)
        try:
            found = rewrite(analysis, by_stage, ()).profile
            larger += 1
            if found.peak_bytes < best[1].peak_bytes:
                best = by_stage, found
        except PlanError as error:
            failures.note(error, by_stage)
        problem = replace(problem, excluded=problem.excluded | {solution.plan})
    return best
