"""The pipeline: teacher in, student out; and a saved student made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from redistill import recipe as folder
from redistill.budget import Budget
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.choosing import Choice, carry_out
from redistill.compiler.fidelity import check_calibration, choose_by_fidelity, fit_where_better
from redistill.compiler.levers import pull_levers
from redistill.compiler.patching import carry_out_patches
from redistill.compiler.record import InputSpec, Provenance, StudentRecord
from redistill.compiler.request import MAX_EXTRA_MACS, Request
from redistill.errors import ModelError, PlanError, RedistillError, StudentError, TapError
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import MemoryProfile, lifetimes, timeline
from redistill.models import load_model
from redistill.models.specs import require_trust
from redistill.passes.running import Pass, find_passes, pass_name
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.search import FIDELITY, Objective, PoolingPlan
from redistill.report.data import red_macs
from redistill.student import Student, record_of
from redistill.tracing.call import read_arguments
from redistill.tracing.contexts import undisturbed


@undisturbed
def transform(
    teacher: nn.Module,
    example_inputs: Any,
    budget: str | int | Budget = "4x",
    convention: str | Convention = "deploy",
    objective: str | Objective | Callable[..., Any] = "macs",
    taps: str | Path | Sequence[Sequence[str]] = "auto",
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
        taps: ``auto``, ``none``, pairs of places ``[("layer2.0 in", "layer3.0 in")]`` (the student's, the teacher's) or
            a YAML file of them; their RED blocks count within the budget.
        factors: explicit pooling factors, one for each stage in data-flow order; then the budget is not consulted.
        dtype: count activations as ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        init: how RED blocks start, ``gentle`` or ``default`` (see ``redistill.models.red_block.REDBlock``).
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

    Conventions, objectives and passes may also be given as ``package.module:Name``.

    Example:
        >>> import torch, torchvision
        >>> teacher = torchvision.models.resnet18()
        >>> print(transform(teacher, torch.zeros(1, 3, 64, 64), budget="4x", taps="none").plan)
        4, 2, 2, 1, 1: 0.312 -> 0.062 MiB (deploy), 58 % of the MACs
    """
    request = Request.of(
        budget, factors, convention, objective, taps, init, dtype, reorder, passes, levers, max_extra_macs
    )
    analysis = analyze(
        teacher, example_inputs, request.convention, dtype, reorder, "resize" in request.levers, leaf_modules
    )
    return make_student(analysis, request, model, weights, calibration, time_limit)


def make_student(
    analysis: Analysis,
    request: Request,
    model: str | None = None,
    weights: str = "the teacher given",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    time_limit: float = 600.0,
) -> Student:
    """Make the student that ``request`` asks for of a teacher that is already analysed; arguments as :func:`transform`.

    Raises:
        PlanError, TapError, InfeasibleBudgetError: as :func:`transform`.
    """
    started = time.perf_counter()
    choice = _choose(analysis, request, calibration, time_limit)
    origin = Provenance(
        teacher=analysis.name,
        model=model,
        weights=weights,
        inputs=tuple(InputSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in analysis.inputs),
        request=request,
        notes=tuple(dict.fromkeys((*analysis.notes, *choice.notes))),
        seconds=analysis.seconds + time.perf_counter() - started,
    )
    return build_student(analysis, choice, origin)


def _choose(
    analysis: Analysis, request: Request, calibration: Tensor | tuple[Tensor, ...] | None, time_limit: float
) -> Choice:
    """The choice that the request asks for, fitted where there are images and that is better."""
    if request.goal == FIDELITY and "patches" not in request.levers:
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
    )
    student = Student.from_graph(choice.rewritten.graph_module, record, analysis.config)
    student.train(analysis.training)
    return student


def nothing_in_place(analysis: Analysis) -> int | None:
    """The teacher's peak were nothing overwritten; None where its convention overwrites nothing."""
    if not analysis.convention.overwrites:
        return None
    plain = replace(analysis.convention, overwrites=False)
    record = analysis.stages.record
    return max(step.live_bytes for step in timeline(record, lifetimes(record, plain), plain))


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


@undisturbed
def load_student(
    directory: str | Path, teacher: nn.Module | None = None, trust: bool = False, *, passes: Iterable[Any] = ()
) -> Student:
    """Load a saved student; it returns the same outputs to the bit.

    Args:
        directory: a folder written by ``Student.save``.
        teacher: a module of the teacher's architecture (its weights do not matter); needed only if the student was
            made of a module rather than of a model spec.
        trust: import the module that the folder names as its teacher's, which runs its code; providers of models that
            this library knows need no trust.
        passes: the passes of one's own that it was made with, if any; a folder names them and runs none.

    Raises:
        StudentError: the folder is missing or damaged, or the teacher is not the one it was made of.

    Example:
        >>> import torch, redistill
        >>> from redistill.models import load_model
        >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
        >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
        >>> redistill.load_student(student.save("student"), teacher).plan.factors
        (2, 1, 1)
    """
    path = Path(directory)
    recipe = folder.read(path)
    teacher = teacher if teacher is not None else _load_teacher(path, recipe.get("model"), trust)
    origin = _provenance(recipe, path)
    origin = replace(origin, request=replace(origin.request, passes=_own_passes(recipe, passes, path)))
    student = _make_again(recipe, origin, teacher, path)
    folder.load_weights(student, path)
    if record_of(student).plan.peak_bytes != recipe["peak_bytes"]["student"]:
        raise StudentError(
            f"the student rebuilt from {path} peaks at {record_of(student).plan.peak_bytes} bytes, its recipe says "
            f"{recipe['peak_bytes']['student']}; it was saved with torch {recipe['versions']['torch']}"
        )
    return student


def _make_again(recipe: dict[str, Any], origin: Provenance, teacher: nn.Module, path: Path) -> Student:
    """Carry out the recipe's own factors and taps: nothing is searched for again."""
    request = origin.request
    tensors = tuple(spec.example() for spec in origin.inputs)
    try:
        example = read_arguments(recipe["arguments"], tensors) if "arguments" in recipe else tensors
        found = Request.of(
            factors=[stage["factor"] for stage in recipe["plan"]],
            taps=recipe["taps"],
            init=request.init,
            passes=request.passes,
        )
        resizes = "resize" in request.levers
        analysis = analyze(teacher, example, request.convention, request.dtype, request.reorder, resizes, check=False)
        choice = carry_out(analysis, found.factors or (), found)
        if recipe.get("patches") is not None:
            patched = carry_out_patches(analysis, choice.rewritten, PatchPlan.from_plain(recipe["patches"]))
            choice = replace(choice, rewritten=patched.rewritten, patches=patched.plan)
        return build_student(analysis, choice, origin)
    except (ModelError, PlanError, TapError) as error:
        raise StudentError(f"{path} was made of another architecture than {type(teacher).__name__}: {error}") from error
    except RedistillError:
        raise
    except Exception as error:  # whatever a teacher makes of inputs, places and factors that were not its own
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise StudentError(f"{path} cannot be made again of {type(teacher).__name__}: {said}") from error


def _own_passes(recipe: dict[str, Any], passes: Iterable[Any], path: Path) -> tuple[Pass, ...]:
    """The passes that are given, which must be those that the recipe names."""
    wanted, found = recipe["request"].get("passes", []), find_passes(passes)
    if wanted != [pass_name(each) for each in found]:
        named = ", ".join(map(str, wanted)) or "none"
        raise StudentError(f"{path} was made with the passes {named}; give these: load_student(path, passes=[...])")
    return found


def _provenance(recipe: dict[str, Any], path: Path) -> Provenance:
    try:
        request = Request.from_plain(recipe["request"])
    except Exception as error:  # a stranger's convention may hold anything
        raise StudentError(f"{path} holds a request that cannot be read: {error}") from error
    return Provenance(
        teacher=recipe["teacher"],
        model=recipe.get("model"),
        weights=str(path),
        inputs=tuple(InputSpec(tuple(i["shape"]), i["dtype"]) for i in recipe["inputs"]),
        request=request,
        notes=tuple(recipe.get("notes", ())),
        seconds=0.0,
    )


def _load_teacher(path: Path, model: str | None, trust: bool) -> nn.Module:
    if model is None:
        raise StudentError(f"{path} was made of a module that has no spec; give it: load_student(path, teacher=module)")
    return load_model(require_trust(model, path, trust), weights="random")
