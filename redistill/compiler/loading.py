"""A saved student made again: its recipe carried out anew on the teacher's architecture, then its own weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from redistill import recipe as folder
from redistill.compiler.analysis import analyze
from redistill.compiler.choosing import carry_out
from redistill.compiler.patching import carry_out_patches
from redistill.compiler.pipeline import build_student
from redistill.compiler.record import InputSpec, Provenance
from redistill.compiler.request import Request
from redistill.errors import ModelError, PlanError, RedistillError, StudentError, TapError
from redistill.models import load_model
from redistill.models.specs import require_trust
from redistill.partial import put_in_place
from redistill.passes.running import Pass, find_passes, pass_name
from redistill.planning.patches.plan import PatchPlan
from redistill.student import Student, record_of
from redistill.tracing.arguments import read_arguments
from redistill.tracing.contexts import undisturbed


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
    student = _make_again(recipe, origin, _planned_part(teacher, origin.part, path), path)
    if origin.part is not None:
        student = put_in_place(teacher, origin.part, student)
    folder.load_weights(student, path)
    if record_of(student).plan.peak_bytes != recipe["peak_bytes"]["student"]:
        raise StudentError(
            f"the student rebuilt from {path} peaks at {record_of(student).plan.peak_bytes} bytes, its recipe says "
            f"{recipe['peak_bytes']['student']}; it was saved with torch {recipe['versions']['torch']}"
        )
    return student


def _planned_part(teacher: nn.Module, part: str | None, path: Path) -> nn.Module:
    try:
        return teacher if part is None else teacher.get_submodule(part)
    except AttributeError:
        raise StudentError(f"{path} was made of another architecture: {type(teacher).__name__} has no {part}") from None


def _make_again(recipe: dict[str, Any], origin: Provenance, teacher: nn.Module, path: Path) -> Student:
    """Carry out the recipe's own factors and taps: nothing is searched for again."""
    request = origin.request
    tensors = tuple(spec.example() for spec in origin.inputs)
    try:
        example = read_arguments(recipe["arguments"], tensors, teacher) if "arguments" in recipe else tensors
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
        part=recipe.get("part"),
    )


def _load_teacher(path: Path, model: str | None, trust: bool) -> nn.Module:
    if model is None:
        raise StudentError(f"{path} was made of a module that has no spec; give it: load_student(path, teacher=module)")
    return load_model(require_trust(model, path, trust), weights="random")
