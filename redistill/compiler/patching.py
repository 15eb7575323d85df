"""Patching: a rewritten student brought under a limit by running regions of it in parts, its outputs unchanged."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redistill.compiler.analysis import Analysis
from redistill.compiler.rewriting import Rewritten
from redistill.errors import PlanError
from redistill.memory.order import lower_bound
from redistill.memory.profiling import profile_record
from redistill.memory.recording import record_graph
from redistill.passes.patch import join_of, lay_patches, mark_patches
from redistill.passes.verify import output_shapes
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.patches.segmenting import Segmentation, Segmenter

ATTEMPTS = 4
PRECISION = 0.01


@dataclass(frozen=True)
class Patched:
    """A student whose graph is marked with the regions to run in parts; its profile is that of the deployed form."""

    rewritten: Rewritten
    plan: PatchPlan


def segmenter_of(analysis: Analysis, rewritten: Rewritten, max_extra_macs: float) -> Segmenter:
    """A segmenter of a student's graph."""
    convention = analysis.convention.of_graph
    network = PatchNetwork(rewritten.graph_module, rewritten.record, convention)
    return Segmenter(network, max_extra_macs, join_of(convention))


def patch(analysis: Analysis, rewritten: Rewritten, limit: int, max_extra_macs: float) -> Patched | None:
    """The cheapest way to run a student in parts within ``limit`` bytes; None if there is none.

    What counts is what the analyzer says of the graph carried out. Should that be more than was planned, the plan is
    made anew for less.
    """
    if rewritten.profile.peak_bytes <= limit:
        bound = lower_bound(rewritten.record, rewritten.profile.convention)
        return Patched(replace(rewritten, profile=replace(rewritten.profile, lower_bound=bound)), PatchPlan())
    segmenter, target = segmenter_of(analysis, rewritten, max_extra_macs), limit
    for _ in range(ATTEMPTS):
        found = segmenter.find(target)
        if found is None:
            return None
        patched = carry_out_patches(analysis, rewritten, PatchPlan.of(found, segmenter.network))
        if patched.rewritten.profile.peak_bytes <= limit:
            return patched
        target -= patched.rewritten.profile.peak_bytes - limit
    return None


def carry_out_patches(analysis: Analysis, rewritten: Rewritten, plan: PatchPlan) -> Patched:
    """Mark the regions of a plan in the student's graph, and profile the form that they are deployed in.

    Raises:
        PlanError: the graph has no such nodes, or cannot be run in these parts.
    """
    mark_patches(rewritten.graph_module, plan)
    if not plan.regions:
        return Patched(rewritten, plan)
    convention = analysis.convention.of_graph
    form = lay_patches(rewritten.graph_module, join_of(convention))
    record = record_graph(form, analysis.inputs, analysis.dtype)
    found = output_shapes(form, record)
    if found != output_shapes(rewritten.graph_module, rewritten.record):
        raise PlanError(f"run in parts, the output would be {found}")
    known = rewritten.profile
    profile = replace(profile_record(record, convention), parameters=known.parameters, dtype=known.dtype)
    plan = replace(plan, extra_macs=record.macs - rewritten.record.macs, whole_bytes=known.peak_bytes)
    return Patched(replace(rewritten, profile=profile, record=record), plan)


def best_patches(segmenter: Segmenter, above: int = 0, precision: float = PRECISION) -> Segmentation:
    """The segmentation of least memory within the extra work allowed; the network whole if nothing can be gained.

    Found by bisection down to ``precision``: what fits a limit fits a larger one. ``above`` bytes are known not to do.
    """
    best = Segmentation((), 0, max(segmenter.network.live))
    low = max(above, segmenter.bound())
    while low < best.peak_bytes * (1 - precision):
        limit = (low + best.peak_bytes) // 2
        found = segmenter.find(limit)
        if found is None:
            low = limit
        else:
            best = found
    return best
