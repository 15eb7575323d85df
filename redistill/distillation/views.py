"""How a task sees a network: inputs go in, :class:`Outputs` come out, and nothing is computed that no one needs.

Inputs are what the network takes: images [B, C, H, W], for denoisers also timesteps [B] and perhaps labels [B].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from redistill.distillation import Need, Outputs
from redistill.distillation.pairing import is_architecture_of, pair_by_grid
from redistill.student import Student

STAGE, PREACTIVATION, REENTRY = "stage:", "preactivation:", "reentry:"


class StudentView:
    """The student with its taps and features as outputs of the graph; gradients flow through all of them."""

    def __init__(self, student: Student, needs: frozenset[Need]) -> None:
        self.module: nn.Module = student.tapped(features=wanted_nodes(student, needs))

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the student."""
        return sort_outputs(*self.module(*inputs))


class TeacherView:
    """A frozen teacher, run only as deep as some tap, feature or logit needs, under inference mode.

    What it gives are copies made outside of inference mode, which a student's backward pass may keep.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the teacher, without a gradient."""
        with torch.inference_mode():
            output, maps = self.module(*inputs)
        logits = None if output is None else output.clone()
        return sort_outputs(logits, {name: value.clone() for name, value in maps.items()})


def view_teacher(student: Student, teacher: nn.Module, needs: frozenset[Need]) -> TeacherView:
    """The teacher as the student's methods see it; of another architecture it is seen through nodes of equal grids."""
    teacher.eval().requires_grad_(False)
    output = Need.LOGITS in needs
    if is_architecture_of(student, teacher):
        return TeacherView(student.teacher_tapped(teacher, features=wanted_nodes(student, needs), output=output))
    return TeacherView(pair_by_grid(student, teacher, wanted_nodes(student, needs), output))


class PlainView:
    """Any network of which only the output is seen."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the network."""
        return Outputs(logits=self.module(*inputs))


View = Callable[..., Outputs]


def wanted_nodes(student: Student, needs: frozenset[Need]) -> dict[str, str]:
    """Graph nodes to be shown besides the taps, by the names under which they come out."""
    nodes: dict[str, str] = {}
    stages = [stage for stage in student.stages if not stage.boundary]
    if needs & {Need.STAGES, Need.POOLED}:
        nodes |= {f"{STAGE}{stage.name}": stage.output for stage in stages}
    if Need.PREACTIVATIONS in needs:
        nodes |= {f"{PREACTIVATION}{stage.name}": stage.pre_activation for stage in stages}
    if Need.REENTRY in needs and student.reentry is not None:
        nodes[REENTRY] = student.reentry
    return nodes


def sort_outputs(logits: Tensor | None, maps: Mapping[str, Tensor]) -> Outputs:
    """A graph's output and named maps as :class:`Outputs`."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in maps.items() if name.startswith(prefix)}

    prefixes = (STAGE, PREACTIVATION, REENTRY)
    return Outputs(
        logits=logits,
        taps={name: value for name, value in maps.items() if not name.startswith(prefixes)},
        stages=under(STAGE),
        preactivations=under(PREACTIVATION),
        reentry=maps.get(REENTRY),
    )
