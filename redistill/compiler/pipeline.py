"""The pipeline: teacher in, student out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from redistill.budget import Budget
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.choosing import Choice
from redistill.compiler.fidelity import check_calibration, choose_by_fidelity, fit_where_better
from redistill.compiler.levers import pull_levers
from redistill.compiler.parts import find_part
from redistill.compiler.record import InputSpec, Provenance, StudentRecord
from redistill.compiler.request import MAX_EXTRA_MACS, Request
from redistill.errors import TraceError
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import MemoryProfile, lifetimes, timeline
from redistill.memory.recording import GraphRecord
from redistill.partial import note_measured, put_in_place
from redistill.planning.objectives import FIDELITY, Objective
from redistill.planning.plan import PoolingPlan
from redistill.report.data import red_macs
from redistill.student import Student
from redistill.tracing.contexts import undisturbed


@undisturbed
def transform(
    teacher: nn.Module,
    example_inputs: Any,
    budget: str | int | Budget = "4x",
    convention: str | Convention = "deploy",
    objective: str | Objective | Callable[..., Any] = "macs",
    taps: str | Path | Sequence[Sequence[str]] = "none",
    factors: Sequence[int] | None = None,
    *,
    dtype: str | None = None,
    init: str = "gentle",
    reorder: bool = False,
    passes: Iterable[Any] = (),
    levers: str | Sequence[str] = ("pool",),
    max_extra_macs: float = MAX_EXTRA_MACS,
    leaf_modules: Iterable[type[nn.Module]] = (),
    model: str | None = None,
    weights: str = "the teacher given",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    time_limit: float = 600.0,
) -> Student:
    """Rewrite ``teacher`` into a student whose peak activation memory fits ``budget``.

    Args:
        teacher: any convolutional network or UNet; it is not changed.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of arguments by keyword, maps as
            (B, C, H, W); the budget holds for these shapes. What is no tensor in it is a constant of the student.
        budget: ``"4x"``, ``"25%"``, ``"512KiB"``, ``"0.5MB"`` or bytes.
        convention: how peak memory is counted: ``deploy``, ``arena``, ``graph``, ``eager`` or a :class:`Convention`.
        objective: ``macs`` keeps the most multiply-accumulates, ``earliest`` pools in the stem as the paper does,
            ``fidelity`` fits the plans worth trying to the teacher and takes the one that agrees with it best; or one's
            own, an ``Objective`` or a function of a problem that gives a score for each choice of each stage.
        taps: where RED blocks stand, within the budget: ``none``; ``auto``, at every transition that meets a grid of
            the teacher's, as the paper has them; pairs of places ``[("layer2.0 in", "layer3.0 in")]`` (the student's,
            the teacher's) or a YAML file of them. The method ``red`` needs them.
        factors: explicit pooling factors, one for each stage in data-flow order; then the budget is not consulted.
        dtype: count activations as ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        init: how RED blocks start, ``gentle`` or ``default``, or ``light``, a cheaper block (see
            ``redistill.models.red_block.REDBlock``).
        reorder: first put the operations into the order of least memory.
        passes: ``torch.fx`` passes of one's own, run after ours; what they leave is verified, and counts.
        levers: by what the budget is met. ``patches`` runs part of the network piece by piece: outputs stay the same,
            at some extra work. ``resize`` makes the image smaller, the same network on fewer pixels. ``pool`` makes
            grids coarser; with ``resize`` the image's own factor is part of the plan. With ``patches`` and others, the
            others do what patches cannot.
        max_extra_macs: the most that patches may compute more, as a share of the network's multiply-accumulates.
        leaf_modules: classes that the trace must not enter.
        model: the spec the teacher was loaded from, kept in the recipe so that the student can be loaded without it.
        weights: where the teacher's weights come from, for the report.
        calibration: images (N, C, H, W) without labels, or a tuple of all that the network is called with, to which the
            student is fitted (see :func:`redistill.fit`). It is fitted to every second one, and the others judge: where
            the inherited weights agree better they are kept; else, but with ``fidelity``, it is fitted to all of them.
        time_limit: seconds after which ``fidelity`` tries no further plan; a note says how many were left.

    Raises:
        BudgetError, ModelError, TraceError, PlanError, TapError, PassError: something given cannot be used.
        InfeasibleBudgetError: no plan fits; the message says what stands in the way.

    Where how much an operation yields depends on the data (a detector's boxes), no graph holds the whole: its largest
    part that can be traced, such as the backbone, is planned for the maps that it gets there, and the student is the
    teacher with that part in its place (a :class:`redistill.partial.PartialStudent`). A note says so.

    Conventions, objectives and passes may also be given as ``package.module:Name``.

    Example:
        >>> import torch, torchvision
        >>> teacher = torchvision.models.resnet18()
        >>> print(transform(teacher, torch.zeros(1, 3, 64, 64), budget="4x").plan)
        4, 2, 2, 1, 1: 0.312 -> 0.062 MiB (deploy), 58 % of the MACs
    """
    request = Request.of(
        budget, factors, convention, objective, taps, init, dtype, reorder, passes, levers, max_extra_macs
    )
    resizes = "resize" in request.levers

    def understand(module: nn.Module, example: Any) -> Analysis:
        return analyze(module, example, request.convention, dtype, reorder, resizes, leaf_modules)

    try:
        analysis = understand(teacher, example_inputs)
    except TraceError as error:
        part = find_part(teacher, example_inputs, error, understand)
        student = make_student(part.analysis, request, model, weights, calibration, time_limit, part.path)
        return note_measured(put_in_place(teacher, part.path, student), teacher, example_inputs)
    return make_student(analysis, request, model, weights, calibration, time_limit)


def make_student(
    analysis: Analysis,
    request: Request,
    model: str | None = None,
    weights: str = "the teacher given",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    time_limit: float = 600.0,
    part: str | None = None,
) -> Student:
    """Make the student that ``request`` asks for of a teacher that is already analysed; arguments as :func:`transform`.

    ``part`` is where in the teacher it will be put, if not the whole is analysed.

    Raises:
        PlanError, TapError, InfeasibleBudgetError: as :func:`transform`.
    """
    started = time.perf_counter()
    choice = _choose(analysis, request, calibration, time_limit)
    origin = Provenance(
        teacher=analysis.name if part is None else f"{analysis.name} ({part})",
        model=model,
        weights=weights,
        inputs=tuple(InputSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in analysis.inputs),
        request=request,
        notes=tuple(dict.fromkeys((*analysis.notes, *choice.notes))),
        seconds=analysis.seconds + time.perf_counter() - started,
        part=part,
    )
    return build_student(analysis, choice, origin)


def _choose(
    analysis: Analysis, request: Request, calibration: Tensor | tuple[Tensor, ...] | None, time_limit: float
) -> Choice:
    """The choice that the request asks for, fitted where there are images and that is better."""
    if request.goal == FIDELITY and request.levers != ("patches",):
        return choose_by_fidelity(analysis, request, calibration, time_limit)
    if calibration is None:
        return pull_levers(analysis, request)
    images = check_calibration(calibration, analysis.inputs)
    choice = pull_levers(analysis, request)
    note = fit_where_better(choice.rewritten.graph_module, analysis.graph_module, images)
    return replace(choice, notes=(*choice.notes, note))


def build_student(analysis: Analysis, choice: Choice, origin: Provenance) -> Student:
    """Build the student of a choice that has been carried out."""
    request, profile = origin.request, choice.rewritten.profile
    plan = PoolingPlan(
        factors=tuple(choice.by_stage[s.index] for s in analysis.stages.free),
        by_stage=choice.by_stage,
        peak_bytes=profile.peak_bytes,
        macs_kept=own_macs(profile, choice) / max(1, analysis.profile.macs),
        objective=request.goal,
        limit=request.limit(analysis.profile.peak_bytes),
        certificate=choice.certificate,
        teacher_bytes=analysis.profile.peak_bytes,
        convention=request.convention.name,
    )
    record = StudentRecord(
        plan=plan,
        taps=choice.taps,
        stages=analysis.stages.stages,
        teacher_profile=analysis.profile,
        profile=profile,
        reentry=find_reentry(analysis, choice.by_stage),
        provenance=origin,
        call=analysis.call,
        patches=choice.patches,
        nothing_in_place=nothing_in_place(analysis),
        own_order=peak_in_own_order(analysis),
    )
    student = Student.from_graph(choice.rewritten.graph_module, record, analysis.config)
    student.train(analysis.training)
    return student


def nothing_in_place(analysis: Analysis) -> int | None:
    """The teacher's peak were nothing overwritten; None where its convention overwrites nothing."""
    if not analysis.convention.overwrites:
        return None
    record = analysis.own_order or analysis.stages.record
    return _peak(record, replace(analysis.convention, overwrites=False))


def peak_in_own_order(analysis: Analysis) -> int | None:
    """The teacher's peak in its own order; None where that is the one it runs in."""
    if analysis.own_order is None:
        return None
    return _peak(analysis.own_order, analysis.convention.of_graph)


def _peak(record: GraphRecord, convention: Convention) -> int:
    return max(step.live_bytes for step in timeline(record, lifetimes(record, convention), convention))


def own_macs(profile: MemoryProfile, choice: Choice) -> int:
    """What is left of the teacher's own operations: without RED blocks, and without what patches compute twice."""
    return profile.macs - red_macs(profile) - (choice.patches.extra_macs if choice.patches else 0)


def find_reentry(analysis: Analysis, by_stage: Sequence[int]) -> str | None:
    """The node from which on the student's grids are the teacher's for good; None if there is no such node.

    It is the output of the crossing into the first stage with factor 1 after which no pooled stage comes.
    """
    stage_of = analysis.stages.stage_of
    order = [o.node for o in analysis.stages.record.operations]
    pooled = [i for i, node in enumerate(order) if node in stage_of and by_stage[stage_of[node]] > 1]
    if not pooled:
        return None
    after = [c for c in analysis.crossings if order.index(c.out_node) > pooled[-1] and not c.goes_up]
    return after[0].out_node if after else None
