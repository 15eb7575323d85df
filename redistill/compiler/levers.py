"""Levers: the budget is met with the least damage, by patches, a smaller image, pooling or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from redistill.compiler.analysis import Analysis
from redistill.compiler.choosing import (
    POOLED_DEEPEST,
    Choice,
    choose,
    explain,
    find_objective,
    find_taps,
    resized_plans,
)
from redistill.compiler.patching import best_patches, patch
from redistill.compiler.request import Request
from redistill.compiler.rewriting import Rewritten, attach, pool, real_grids, rewrite
from redistill.errors import InfeasibleBudgetError, PlanError
from redistill.internal.collecting import collecting_only_new
from redistill.internal.text import format_bytes
from redistill.passes.patch import join_of
from redistill.planning.objectives import Objective
from redistill.planning.patches.joint import PatchBound, plans_by_score
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.segmenting import COARSE, FINE, Lattice, Segmentation, Segmenter
from redistill.planning.plan import Certificate
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.tracing.copying import clone

NO_TAPS = "no taps: their RED blocks do not fit"
MOST_REGIONS = 100_000
"""The possible regions of a network up to which it is told by the way what patches would do: some seconds' work."""
QUICK = 0.05
"""How near to the least bytes the search for that note ends."""


@collecting_only_new()
def pull_levers(analysis: Analysis, request: Request) -> Choice:
    """Meet the request's budget by its levers, the one that costs least first.

    Raises:
        PlanError, TapError, InfeasibleBudgetError: as :func:`redistill.transform`.
    """
    if "patches" not in request.levers:
        choice = choose(analysis, request)
        return replace(choice, notes=(*choice.notes, *_what_patches_would_do(analysis, request, choice)))
    limit = request.limit(analysis.profile.peak_bytes)
    assert limit is not None, "explicit factors leave no budget for patches"
    alone = patch_alone(analysis, request, limit)
    if alone is not None:
        return alone
    if "pool" in request.levers:
        return pool_and_patch(analysis, request, limit)
    if "resize" in request.levers:
        return resize_and_patch(analysis, request, limit)
    raise InfeasibleBudgetError(explain_patches(analysis, request, limit))


def patch_alone(analysis: Analysis, request: Request, limit: int) -> Choice | None:
    """The teacher run in parts, its outputs unchanged; None if that does not fit."""
    whole = unpooled(analysis, request)
    found = patch(analysis, whole, limit, request.max_extra_macs)
    if found is None:
        return None
    notes = () if found.plan.regions else ("the teacher fits the budget as it is; nothing is run in parts",)
    return Choice(ones(analysis), (), found.rewritten, None, notes, found.plan)


def ones(analysis: Analysis) -> tuple[int, ...]:
    """The plan that pools nothing."""
    return tuple(1 for _ in analysis.stages.stages)


def unpooled(analysis: Analysis, request: Request) -> Rewritten:
    """The teacher as a student that pools nothing."""
    return rewrite(analysis, ones(analysis), (), passes=request.passes)


def pool_and_patch(analysis: Analysis, request: Request, limit: int) -> Choice:
    """The plan of best objective among those that patches bring under the limit.

    As when pooling alone, taps are part of it and the deepest stage keeps its grid, as long as that can be.

    Raises:
        InfeasibleBudgetError: none fits.
    """
    goal = find_objective(request.objective, analysis)
    for restore in (True, False):
        for with_taps in (True, False) if request.taps != "none" else (False,):
            found = _best_that_fits(analysis, request, limit, goal, with_taps, restore)
            if found is not None:
                return found
    raise InfeasibleBudgetError(explain(analysis, limit))


def resize_and_patch(analysis: Analysis, request: Request, limit: int) -> Choice:
    """The largest image with which patches bring the network under the limit.

    Raises:
        InfeasibleBudgetError: there is none.
    """
    for by_stage in resized_plans(analysis):
        found = _try(analysis, request, limit, by_stage, request.taps != "none")
        if found is not None:
            return own_weights(found)
    raise InfeasibleBudgetError(explain_patches(analysis, request, limit))


def _best_that_fits(
    analysis: Analysis, request: Request, limit: int, goal: Objective, with_taps: bool, restore: bool
) -> Choice | None:
    model = ScalingModel(analysis.stages, analysis.convention, candidate_factors(analysis.stages, restore))
    problem = model.problem()
    bound = PatchBound(model, teacher_segmenter(analysis, request.max_extra_macs))
    tried = 0
    for visited, (plan, score) in enumerate(plans_by_score(problem, goal), start=1):
        if bound.of(plan) > limit:
            continue
        found = _try(analysis, request, limit, problem.factors(plan), with_taps)
        if found is not None:
            notes = found.notes if restore else (*found.notes, POOLED_DEEPEST)
            notes = notes if with_taps or request.taps == "none" else (*notes, NO_TAPS)
            return replace(
                own_weights(found), certificate=Certificate(problem.size, visited, score, tried), notes=notes
            )
        tried += 1
    return None


def _try(analysis: Analysis, request: Request, limit: int, by_stage: tuple[int, ...], with_taps: bool) -> Choice | None:
    """A plan with its taps, if patches bring it under the limit."""
    try:
        pooled = pool(analysis, by_stage, shares_weights=not request.passes)  # most plans fail; weights are large
        taps = find_taps(analysis, by_stage, request, real_grids(analysis, pooled)) if with_taps else ()
        rewritten = attach(analysis, pooled, taps, request.init, request.passes, bounds_orders=False)
        found = patch(analysis, rewritten, limit, request.max_extra_macs)
    except PlanError:
        return None
    return Choice(by_stage, taps, found.rewritten, None, (), found.plan) if found else None


def carry_out_patched(analysis: Analysis, request: Request, limit: int, by_stage: tuple[int, ...]) -> Choice | None:
    """The student with these factors and as many taps as fit, if patches bring it under the limit.

    Its weights are the teacher's own (see :func:`own_weights`).
    """
    if request.taps != "none" and (found := _try(analysis, request, limit, by_stage, True)):
        return found
    found = _try(analysis, request, limit, by_stage, False)
    return found if found is None or request.taps == "none" else replace(found, notes=(*found.notes, NO_TAPS))


def own_weights(choice: Choice) -> Choice:
    """The choice with weights of its own, that may be trained."""
    student = replace(choice.rewritten, graph_module=clone(choice.rewritten.graph_module))
    return replace(choice, rewritten=student)


def _what_patches_would_do(analysis: Analysis, request: Request, choice: Choice) -> Iterator[str]:
    """For a student that is pooled to meet a budget, in one line and quickly: would patches do, and at what cost?"""
    limit = request.limit(analysis.profile.peak_bytes)
    if limit is None or all(factor == 1 for factor in choice.by_stage):
        return
    segmenter = teacher_segmenter(analysis, request.max_extra_macs, COARSE)
    if segmenter.network.possible_regions > MOST_REGIONS:
        yield "what patches alone would do was not looked for, since the network is long; levers patches does"
        return
    found = segmenter.find(limit)
    if found is not None:
        yield f"patches alone would meet this budget at {_cost(analysis, found)}, outputs unchanged (levers patches)"
    else:
        best = best_patches(segmenter, limit, precision=QUICK)
        reached = _best(analysis, best)
        yield f"patches alone do not meet this budget: searched quickly, {reached}; levers patches,pool do"


def _cost(analysis: Analysis, found: Segmentation) -> str:
    return f"+{100 * found.extra_macs / max(analysis.profile.macs, 1):.1f} % MACs"


def _best(analysis: Analysis, best: Segmentation) -> str:
    """The best that patches can do."""
    if not best.regions:
        return "nothing at its peak can be run in parts"
    ratio = analysis.profile.peak_bytes / best.peak_bytes
    reached = f"{format_bytes(best.peak_bytes)}, {ratio:.2f}x, at {_cost(analysis, best)}"
    return f"the best that can be had is {reached}"


def teacher_segmenter(analysis: Analysis, max_extra_macs: float, lattice: Lattice = FINE) -> Segmenter:
    """A segmenter of the teacher's own graph."""
    convention = analysis.convention.of_graph
    network = PatchNetwork(analysis.graph_module, analysis.stages.record, convention)
    return Segmenter(network, max_extra_macs, join_of(convention), lattice)


def explain_patches(analysis: Analysis, request: Request, limit: int) -> str:
    """Why patches alone do not fit: the best that they can do within the extra work allowed."""
    best = best_patches(teacher_segmenter(analysis, request.max_extra_macs), limit)
    return (
        f"patches alone do not bring {analysis.name} within {format_bytes(limit)} ({analysis.convention}) at no more "
        f"than +{100 * request.max_extra_macs:g} % MACs; {_best(analysis, best)}; "
        f"{'allow more with max_extra_macs, or ' if best.regions else ''}pool as well: levers patches,pool"
    )
