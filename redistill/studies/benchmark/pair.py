"""A teacher and its student, made ready to be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from redistill import recipe
from redistill.compiler.loading import load_student
from redistill.compiler.pipeline import transform
from redistill.errors import StudentError
from redistill.models import example_inputs, find_weights, load_model, parse_shape
from redistill.models.specs import require_trust
from redistill.student import Student, record_of

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Pair:
    """Teacher and student in eval mode on the CPU, the teacher's spec, and whence the weights come."""

    model: str
    teacher: nn.Module
    student: Student
    weights: str

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes (C, H, W) of the images that the student was made for."""
        return tuple(s.shape[1:] for s in record_of(self.student).provenance.inputs if len(s.shape) > 3)

    @property
    def is_denoiser(self) -> bool:
        """Whether a timestep comes with the image, so that one image takes many runs."""
        specs = record_of(self.student).provenance.inputs
        return len(specs) > 1 and specs[1].dtype == "int64"

    def inputs(self, batch: int = 1) -> Inputs:
        """Inputs of any batch size, normally distributed, the same at each call."""
        return example_inputs(self.model, self.teacher, self.shapes, batch)


def make_pair(
    model: str, budget: str = "4x", weights: str | None = None, shape: str | None = None, convention: str = "deploy"
) -> Pair:
    """The teacher of a spec and the student that fits the budget.

    Raises:
        ModelError, BudgetError, TraceError, InfeasibleBudgetError: something given cannot be used.
    """
    torch.manual_seed(0)
    teacher = load_model(model, weights)
    inputs = example_inputs(model, teacher, [parse_shape(shape)] if shape else None)
    origin = find_weights(model, weights)
    student = transform(teacher, inputs, budget, convention, model=model, weights=origin).eval()
    return Pair(model, teacher, student, origin)


def read_pair(folder: str | Path, model: str | None = None, trust: bool = False) -> Pair:
    """The student in a folder, or in ``student`` of a run's folder, and its teacher's architecture.

    What the folder names is imported only with ``trust``; what ``model`` names, as it is. The teacher has random
    weights: neither memory nor time depends on them.

    Raises:
        StudentError: there is no student, or the teacher is not the one it was made of.
    """
    path = find_student(folder)
    spec = model or recipe.read(path).get("model")
    if spec is None:
        raise StudentError(f"{path} does not say which model its teacher is; give it: --model SPEC")
    if model is None:
        require_trust(spec, path, trust)
    torch.manual_seed(0)
    teacher = load_model(spec, "random")
    student = load_student(path, teacher).eval()
    return Pair(spec, teacher, student, str(path))


def find_student(folder: str | Path) -> Path:
    """The student's folder itself, or that within a run's folder.

    Raises:
        StudentError: there is none.
    """
    candidates = (Path(folder), Path(folder) / "student")
    found = next((path for path in candidates if (path / recipe.RECIPE).is_file()), None)
    if found is None:
        raise StudentError(
            f"there is no student in {folder}: neither {recipe.RECIPE} nor student/{recipe.RECIPE}; "
            "make one with redistill transform --output DIR"
        )
    return found
