"""Rewriting: a plan and its taps, written into a copy of the teacher's graph and carried out by the passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch.fx import GraphModule

from redistill.compiler.analysis import Analysis
from redistill.errors import PassError, PlanError
from redistill.memory.lifetimes import MemoryProfile
from redistill.memory.profiling import count_parameters, profile_record
from redistill.memory.recording import GraphRecord
from redistill.passes.attach_taps import AttachTapsPass, TapOrder
from redistill.passes.editing import carriers
from redistill.passes.geometry import UnreachableGridError
from redistill.passes.insert_pooling import InsertPoolingPass
from redistill.passes.orders import Narrow, Resize, Restride
from redistill.passes.running import Pass, pass_name, run_passes
from redistill.passes.strip_guards import StripGuardsPass
from redistill.passes.verify import VerifyPass, output_shapes
from redistill.planning.meeting import longer_when_met
from redistill.planning.stages import Grid, Transition, coarse
from redistill.planning.taps import Tap
from redistill.tracing.copying import clone
from redistill.tracing.meta import Meta


@dataclass(frozen=True)
class Rewritten:
    """A student's graph over its own copy of the weights, and its verified profile."""

    graph_module: GraphModule
    profile: MemoryProfile
    record: GraphRecord


def rewrite(
    analysis: Analysis,
    by_stage: Sequence[int],
    taps: Sequence[Tap] = (),
    init: str = "gentle",
    passes: Sequence[Pass] = (),
) -> Rewritten:
    """Carry out the plan ``by_stage`` (one factor for each stage) and the taps on a copy of the teacher.

    ``passes`` are the user's own, run after ours; what they leave is verified as ours is.

    Raises:
        PlanError: an operation cannot take its stride, a guard no longer holds, an output changes its shape, or a pass
            of ours fails.
        PassError: one of ``passes`` fails, or leaves a graph that does not hold.
    """
    return attach(analysis, pool(analysis, by_stage), taps, init, passes)


def attach(
    analysis: Analysis,
    student: GraphModule,
    taps: Sequence[Tap],
    init: str = "gentle",
    passes: Sequence[Pass] = (),
    bounds_orders: bool = True,
) -> Rewritten:
    """Lay the taps into a student that is pooled already, in place, run the user's ``passes`` and verify it.

    Without ``bounds_orders`` its profile tells no bound over all orders: for a student that may not fit.

    Raises:
        PlanError: a guard no longer holds, an output changes its shape, or a pass of ours fails.
        PassError: one of ``passes`` fails, or leaves a graph that does not hold.
    """
    for name, node in carriers(student).items():
        node.meta[Meta.TAPS] = tuple(
            TapOrder(t.name, t.channels, t.module, t.side, len(t.grid)) for t in taps if t.student_node == name
        )
    expected = output_shapes(analysis.graph_module, analysis.stages.record)
    verify = VerifyPass(analysis.inputs, expected, analysis.dtype)
    _run_ours(student, [AttachTapsPass(init), verify])
    if passes:
        student = _run_own(student, passes, verify)
    run_passes(student, [StripGuardsPass()])
    found = profile_record(verify.record, analysis.convention.of_graph, bounds_orders)
    return Rewritten(student, replace(found, parameters=count_parameters(student), dtype=analysis.dtype), verify.record)


def _run_ours(student: GraphModule, passes: Sequence[Pass]) -> None:
    """Run passes of ours; what fails in them is the plan's, for another may not come there."""
    try:
        run_passes(student, passes)
    except PassError as error:
        raise PlanError(str(error)) from error


def _run_own(student: GraphModule, passes: Sequence[Pass], verify: VerifyPass) -> GraphModule:
    """Run the user's passes; what is wrong afterwards is theirs, not the plan's."""
    changed = run_passes(student, passes)
    try:
        changed.graph.lint()
        changed.recompile()
        run_passes(changed, [verify])
    except Exception as error:
        names = ", ".join(map(pass_name, passes))
        raise PassError(f"after {names} the graph does not hold: {' '.join(str(error).split())[:300]}") from error
    return changed


def pool(analysis: Analysis, by_stage: Sequence[int], shares_weights: bool = False) -> GraphModule:
    """Pool a copy of the teacher by the plan; where a grid is out of reach, its whole stage takes a smaller one.

    With ``shares_weights`` its tensors are the teacher's own: for a student that is looked at only.

    Raises:
        PlanError: an operation cannot take its stride, the graph no longer fits together, or a pass of ours fails.
    """
    if not analysis.stages.narrowing:
        return _pool(analysis, by_stage, shares_weights)
    try:
        return _pool(analysis, by_stage, shares_weights)
    except PlanError:
        return _pool(analysis, by_stage, shares_weights, crops=True)


def _pool(
    analysis: Analysis, by_stage: Sequence[int], shares_weights: bool = False, crops: bool = False
) -> GraphModule:
    """With ``crops``, unpadded windows are padded to the planned grid exactly, at the price of a copy."""
    smaller: dict[tuple[int, Grid], Grid] = {}
    targets = {t.node: _entrance(t, analysis) for t in analysis.stages.transitions}
    while True:
        student = clone(analysis.graph_module, shares_weights).eval()
        annotate(student, analysis, by_stage, smaller, crops)
        try:
            _run_ours(student, [InsertPoolingPass()])
            return student
        except UnreachableGridError as error:
            if error.node not in targets:
                raise
            entrance = stage, own = targets[error.node]
            grid = list(smaller.get(entrance) or entrance_grid(analysis, error.node, own, by_stage[stage]))
            axis = error.axis - error.dims + len(grid)
            if error.largest >= grid[axis] or error.largest < 1:
                raise
            grid[axis] = error.largest
            smaller[entrance] = tuple(grid)


def real_grids(analysis: Analysis, student: GraphModule) -> dict[str, Grid]:
    """The grids that really arise in a pooled student, for each node that lies on one."""
    shapes = {name: node.meta[Meta.SHAPE] for name, node in carriers(student).items() if Meta.SHAPE in node.meta}
    axes = {name: analysis.stages.growth.axes(name) for name in shapes}
    return {name: tuple(shape[a] for a in axes[name]) for name, shape in shapes.items() if axes[name]}


def _entrance(transition: Transition, analysis: Analysis) -> tuple[int, Grid]:
    """The stage that a transition enters, and the teacher's grid there: all that enters so must agree."""
    return transition.target, analysis.stages.growth.sides(transition.node)


def annotate(
    graph_module: GraphModule,
    analysis: Analysis,
    by_stage: Sequence[int],
    smaller: dict[tuple[int, Grid], Grid],
    crops: bool = False,
) -> None:
    """Write into ``node.meta`` what each node must become; nothing is changed yet."""
    nodes = {n.name: n for n in graph_module.graph.nodes}
    for transition in analysis.stages.transitions:
        order = restride(transition, analysis, by_stage, smaller)
        if order is not None:
            nodes[transition.node].meta[Meta.RESTRIDE] = order
    for node, source in analysis.stages.narrowing:
        narrow = _keep_border(node, source, analysis, by_stage, crops)
        if narrow is not None:
            nodes[node].meta[Meta.RESTRIDE] = narrow
    for node in {name for name, _ in analysis.stages.told}:
        keeps = by_stage[analysis.stages.stage_of[node]] == 1
        sizes = tuple(
            (size, ratio, analysis.stages.record.values[size] if keeps else None)
            for size in _told(node, analysis)
            if (ratio := _ratio(node, size, analysis, by_stage)) != 1
        )
        if sizes:
            nodes[node].meta[Meta.RESTRIDE] = Resize(sizes=sizes)
    for node in analysis.stages.resized:
        factor = by_stage[analysis.stages.stage_of[node]]
        if factor > 1:
            nodes[node].meta[Meta.RESTRIDE] = Resize(Fraction(factor))
    for node in graph_module.graph.nodes:
        is_ours = {Meta.REDUCES_INPUT, Meta.RETURNS} & node.meta.keys()
        if is_ours and Meta.RESTRIDE not in node.meta:  # a map that keeps its size needs no pool, and no upsampling
            node.meta[Meta.RESTRIDE] = Restride((), (), ())


def _keep_border(node: str, source: str, analysis: Analysis, by_stage: Sequence[int], crops: bool) -> Narrow | None:
    """Unpadded windows and crops lose as many cells of a coarser grid, which show more: they are to lose fewer."""
    growth, factor = analysis.stages.growth, by_stage[analysis.stages.stage_of[node]]
    before, after = growth.sides(source), growth.sides(node)
    fits = all(b - a < side for b, a, side in zip(before, after, coarse(before, factor), strict=True))
    if factor == 1 or not fits:
        return None
    target = coarse(after, factor)
    loses = tuple(b - t for b, t in zip(coarse(before, factor), target, strict=True))
    return Narrow(target, loses, growth.axes(node), crops)


def _told(node: str, analysis: Analysis) -> list[str]:
    """The sizes of other stages that a node lays its map out by."""
    return [size for name, size in analysis.stages.told if name == node]


def _ratio(node: str, size: str, analysis: Analysis, by_stage: Sequence[int]) -> Fraction:
    """By how much more a node's own grid shrinks than a size of another stage."""
    own, other = (by_stage[analysis.stages.stage_of[name]] for name in (node, size))
    return Fraction(own, other) ** analysis.stages.growth.sides_in(size)


def restride(
    transition: Transition, analysis: Analysis, by_stage: Sequence[int], smaller: dict[tuple[int, Grid], Grid]
) -> Restride | Resize | None:
    """The new strides of one operation, or the scale of the size it is told; None where it keeps its own."""
    source, target = by_stage[transition.source], by_stage[transition.target]
    if transition.operator == "resize":
        told = target if transition.size_stage is None else by_stage[transition.size_stage]
        return None if told == target else Resize(Fraction(target, told))
    strides = transition.student_strides(source, target)
    entrance = _entrance(transition, analysis)
    if strides == transition.strides and entrance not in smaller:
        return None
    grid = smaller.get(entrance) or entrance_grid(analysis, transition.node, entrance[1], target)
    return Restride(strides, grid, transition.axes)


def entrance_grid(analysis: Analysis, node: str, grid: Grid, factor: int) -> Grid:
    """The student's grid where a node enters a stage with the teacher's ``grid``: what pads add to it is not pooled."""
    if factor == 1:
        return grid
    entering = next(n for n in analysis.graph_module.graph.nodes if n.name == node)
    padded = longer_when_met(entering, analysis.stages)
    met = coarse([side + more for side, more in zip(grid, padded, strict=True)], factor)
    return tuple(max(1, side - more) for side, more in zip(met, padded, strict=True))
