"""Teachers of another architecture: what the student shows is paired with teacher nodes of equal grid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.errors import TapError
from redistill.planning.stages import Stage, find_stages
from redistill.student import Student, with_outputs
from redistill.tracing.capture import capture

BEFORE_ACTIVATION = "preactivation:"


def is_architecture_of(student: Student, teacher: nn.Module) -> bool:
    """Whether the student was made of such a teacher: every weight of the teacher has its like in the student.

    A tail that enlarges its output has a multiple of the teacher's channels.
    """
    own = student.state_dict()
    return all(name in own and _is_like(own[name], value) for name, value in teacher.state_dict().items())


def _is_like(weight: Tensor, origin: Tensor) -> bool:
    if weight.dim() != origin.dim() or weight.shape[1:] != origin.shape[1:]:
        return False
    return weight.shape == origin.shape or weight.shape[0] % origin.shape[0] == 0


def pair_by_grid(student: Student, teacher: nn.Module, features: Mapping[str, str], output: bool) -> GraphModule:
    """The teacher showing its own maps of equal height and width, under the names of the student's taps and features.

    Of several teacher stages with one grid the deepest counts. What finds no equal grid is not shown.

    Raises:
        TapError: none of the student's maps has the grid of any teacher stage.
    """
    inputs = _example(student)
    captured = capture(teacher, inputs, check=False).graph_module
    stages = {stage.grid: stage for stage in find_stages(captured, inputs).stages if not stage.boundary}
    places = {name: _node(stages[grid], name) for name, grid in _grids(student, features).items() if grid in stages}
    if not places and (features or student.taps):
        grids = ", ".join(f"{height}x{width}" for height, width in stages)
        raise TapError(f"no map of the student has a grid of {type(teacher).__name__} ({grids}); choose another plan")
    return with_outputs(captured, places, output)


def _grids(student: Student, features: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Height and width of the student's taps and features."""
    training = student.training
    with torch.no_grad():
        _, maps = student.eval().tapped(features)(*_example(student))
    student.train(training)
    return {name: (value.shape[-2], value.shape[-1]) for name, value in maps.items()}


def _example(student: Student) -> tuple[Tensor, ...]:
    return tuple(spec.example() for spec in student.record.provenance.inputs)


def _node(stage: Stage, name: str) -> str:
    return stage.pre_activation if name.startswith(BEFORE_ACTIVATION) else stage.output
