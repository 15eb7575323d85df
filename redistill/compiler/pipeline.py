"""The pipeline: teacher in, student out; and a saved student made again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from redistill import recipe as folder
from redistill.budget import Budget, parse_budget
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.choosing import Choice, Wishes, carry_out, choose
from redistill.errors import ModelError, PlanError, StudentError, TapError
from redistill.models import load_model
from redistill.planning.search import PoolingPlan
from redistill.student import InputSpec, Provenance, Student, StudentRecord


def transform(
    teacher: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    budget: str | int | Budget = "4x",
    convention: str = "deploy",
    objective: str = "macs",
    taps: str = "auto",
    factors: Sequence[int] | None = None,
    *,
    dtype: str | None = None,
    init: str = "gentle",
    reorder: bool = False,
    leaf_modules: Iterable[type[nn.Module]] = (),
    model: str | None = None,
    weights: str = "the teacher given",
) -> Student:
    """Rewrite ``teacher`` into a student whose peak activation memory fits ``budget``.

    Args:
        teacher: any convolutional network or UNet; it is not changed.
        example_inputs: a tensor or tuple of tensors, maps as (B, C, H, W); the budget holds for these shapes.
        budget: ``"4x"``, ``"25%"``, ``"512KiB"``, ``"0.5MB"`` or bytes.
        convention: how peak memory is counted (``deploy``, ``arena``, ``graph``, ``eager``).
        objective: ``macs`` keeps the most multiply-accumulates, ``earliest`` pools in the stem as the paper does.
        taps: ``auto``, ``none`` or a YAML file of places; their RED blocks count within the budget.
        factors: explicit pooling factors, one for each stage in data-flow order; then the budget is not consulted.
        dtype: count activations as ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        init: how RED blocks start, ``gentle`` or ``default`` (see ``redistill.models.red_block.REDBlock``).
        reorder: first put the operations into the order of least memory.
        leaf_modules: classes that the trace must not enter.
        model: the spec the teacher was loaded from, kept in the recipe so that the student can be loaded without it.
        weights: where the teacher's weights come from, for the report.

    Raises:
        BudgetError, ModelError, TraceError, PlanError, TapError: something given cannot be used.
        InfeasibleBudgetError: no plan fits; the message says what stands in the way.
    """
    started = time.perf_counter()
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    wanted = parse_budget(budget) if factors is None else None
    analysis = analyze(teacher, inputs, convention, dtype, reorder, leaf_modules)
    origin = replace(
        provenance(teacher, analysis, wanted.text if wanted else None),
        model=model,
        weights=weights,
        init=init,
        reorder=reorder,
    )
    student = make_student(analysis, origin, factors if factors is not None else objective, taps)
    seconds = time.perf_counter() - started
    student.meta["student"] = replace(student.record, provenance=replace(student.provenance, seconds=seconds))
    return student


def provenance(teacher: nn.Module, analysis: Analysis, budget: str | None) -> Provenance:
    """Where a student of ``teacher`` comes from, as far as the analysis tells."""
    return Provenance(
        teacher=type(teacher).__name__,
        model=None,
        weights="the teacher given",
        inputs=tuple(InputSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in analysis.inputs),
        budget=budget,
        convention=analysis.convention,
        dtype=analysis.dtype,
        init="gentle",
        reorder=False,
        notes=analysis.notes,
        seconds=0.0,
    )


def make_student(
    analysis: Analysis, origin: Provenance, goal: str | Sequence[int], taps: str | tuple[dict[str, str], ...] = "auto"
) -> Student:
    """The student of an analysed teacher, for the budget in ``origin`` by the objective ``goal``, or by given factors.

    Raises:
        ModelError, PlanError, TapError, InfeasibleBudgetError: as ``transform``.
    """
    wishes = Wishes(taps, origin.init)
    limit = parse_budget(origin.budget).limit(analysis.profile.peak_bytes) if origin.budget else None
    if isinstance(goal, str):
        assert limit is not None, "an objective needs a budget"
        choice = choose(analysis, limit, goal, wishes)
    else:
        choice = carry_out(analysis, goal, wishes)
    origin = replace(origin, notes=tuple(dict.fromkeys((*origin.notes, *choice.notes))))
    return build_student(analysis, choice, goal if isinstance(goal, str) else "factors", limit, origin)


def build_student(
    analysis: Analysis, choice: Choice, objective: str, limit: int | None, provenance: Provenance
) -> Student:
    """The student of a choice that has been carried out."""
    profile = choice.rewritten.profile
    plan = PoolingPlan(
        factors=tuple(choice.by_stage[s.index] for s in analysis.stages.free),
        by_stage=choice.by_stage,
        peak_bytes=profile.peak_bytes,
        macs_kept=profile.macs / max(1, analysis.profile.macs),
        objective=objective,
        limit=limit,
        certificate=choice.certificate,
    )
    record = StudentRecord(
        plan=plan,
        taps=choice.taps,
        stages=analysis.stages.stages,
        teacher_profile=analysis.profile,
        profile=profile,
        reentry=find_reentry(analysis, choice.by_stage),
        provenance=provenance,
    )
    student = Student.from_graph(choice.rewritten.graph_module, record)
    student.train(analysis.training)
    return student


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


def load_student(directory: str | Path, teacher: nn.Module | None = None) -> Student:
    """Load a saved student; it returns the same outputs to the bit.

    Args:
        directory: a folder written by ``Student.save``.
        teacher: a module of the teacher's architecture (its weights do not matter); needed only if the student was
            made of a module rather than of a model spec.

    Raises:
        StudentError: the folder is missing or damaged, or the teacher is not the one it was made of.
    """
    path = Path(directory)
    recipe = folder.read(path)
    teacher = teacher if teacher is not None else _load_teacher(path, recipe.get("model"))
    origin = _provenance(recipe, type(teacher).__name__, str(path))
    examples = tuple(spec.example() for spec in origin.inputs)
    try:
        analysis = analyze(teacher, examples, origin.convention, origin.dtype, origin.reorder, check=False)
        student = make_student(analysis, origin, [stage["factor"] for stage in recipe["plan"]], tuple(recipe["taps"]))
    except (ModelError, PlanError, TapError) as error:
        raise StudentError(f"{path} was made of another architecture than {type(teacher).__name__}: {error}") from error
    folder.load_weights(student, path)
    student.meta["student"] = replace(student.record, plan=replace(student.plan, objective=recipe["objective"]))
    if student.plan.peak_bytes != recipe["peak_bytes"]["student"]:
        raise StudentError(
            f"the student rebuilt from {path} peaks at {student.plan.peak_bytes} bytes, its recipe says "
            f"{recipe['peak_bytes']['student']}; it was saved with torch {recipe['versions']['torch']}"
        )
    return student


def _provenance(recipe: dict[str, Any], teacher: str, weights: str) -> Provenance:
    return Provenance(
        teacher=teacher,
        model=recipe.get("model"),
        weights=weights,
        inputs=tuple(InputSpec(tuple(i["shape"]), i["dtype"]) for i in recipe["inputs"]),
        budget=recipe.get("budget"),
        convention=recipe["convention"],
        dtype=recipe.get("dtype"),
        init=recipe["init"],
        reorder=bool(recipe.get("reorder")),
        notes=tuple(recipe.get("notes", ())),
        seconds=0.0,
    )


def _load_teacher(path: Path, model: str | None) -> nn.Module:
    if model is None:
        raise StudentError(f"{path} was made of a module that has no spec; give it: load_student(path, teacher=module)")
    return load_model(model, weights="random")
