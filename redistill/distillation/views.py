"""How a network is seen: inputs go in, :class:`Outputs` come out, and nothing is computed that no one needs.

Inputs are what the network takes: images [B, C, H, W], for denoisers also timesteps [B] and perhaps labels [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.distillation.features import Feature, FeatureKind, Nodes, as_outputs, student_nodes, teacher_nodes
from redistill.distillation.method import Need, Outputs
from redistill.distillation.pairing import capture_like, is_architecture_of, pair_by_grid
from redistill.errors import ConfigError
from redistill.partial import PartialStudent
from redistill.student import Student
from redistill.tracing.outputs import lay_behind, with_outputs

SEEN_FROM_OUTSIDE = frozenset({Need.LOGITS, Need.HARD_LABELS, Need.INDICES})
"""What can be known of a network without looking inside."""


class View:
    """A network whose output is seen, and where ``nodes`` are given, these too; gradients flow through all of them.

    Args:
        module: any network; with ``nodes`` one whose forward yields ``(output, {node: map})``.
        nodes: the features by their nodes.
    """

    def __init__(self, module: nn.Module, nodes: Nodes | None = None) -> None:
        self.module, self.nodes = module, nodes

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the network."""
        return self.sort(self.module(*inputs))

    def route(self, modules: Mapping[str, Sequence[nn.Module]]) -> None:
        """Send the maps of coarse stages through modules, for all that comes after them in the network."""
        for name, passed in modules.items():
            assert isinstance(self.module, GraphModule)
            node = (self.nodes or {})[Feature(FeatureKind.COARSE, name)]
            for number, module in enumerate(passed):
                node = lay_behind(self.module, node, f"route_{node}_{number}", module)

    def sort(self, found: Any) -> Outputs:
        """What the module gave, by kind."""
        output, maps = (found, {}) if self.nodes is None else found
        return as_outputs(output, maps, self.nodes or {})


class FrozenView(View):
    """A frozen teacher, run under inference mode.

    What it gives are copies made outside of inference mode, which a student's backward pass may keep.
    """

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the teacher, without a gradient."""
        with torch.inference_mode():
            found = self.module(*inputs)
        return self.sort(_copied(found))


def _copied(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.clone()
    if isinstance(found, tuple):
        return tuple(map(_copied, found))
    return {name: _copied(value) for name, value in found.items()} if isinstance(found, dict) else found


def view_student(student: nn.Module, needs: frozenset[Need]) -> View:
    """The student with what is needed of it as outputs of its graph.

    Raises:
        ConfigError: something inside of a network that is not a :class:`~redistill.Student`.
    """
    if isinstance(student, Student):
        nodes = student_nodes(student, needs)
        if not nodes:
            return View(student)
        return View(with_outputs(student, {node: node for node in nodes.values()}), nodes)
    if isinstance(student, PartialStudent):
        raise ConfigError(
            f"a {type(student).__name__} is a student in part; compare its part: "
            f"Distiller(student.part, teacher.{student.path_of_part})"
        )
    inside = sorted(need.value for need in needs - SEEN_FROM_OUTSIDE)
    if inside:
        raise ConfigError(
            f"methods that read {', '.join(inside)} need a student made by redistill.transform, not a "
            f"{type(student).__name__}; make one (in an experiment: set student.budget, student.factors or "
            "student.folder), or use kd, dkd, mlld or mse"
        )
    return View(student)


def view_teacher(student: nn.Module, teacher: nn.Module, needs: frozenset[Need]) -> View:
    """The teacher as the student's methods see it, frozen, and run only as deep as some of them needs.

    A teacher of another architecture is seen through nodes of equal grids.
    """
    teacher.eval().requires_grad_(False)
    wanted = student_nodes(student, needs) if isinstance(student, Student) else {}
    if not isinstance(student, Student) or not wanted:
        return FrozenView(teacher)
    if is_architecture_of(student, teacher):
        graph, nodes = capture_like(student, teacher), teacher_nodes(student, needs)
    else:
        graph, nodes = pair_by_grid(student, teacher, wanted)
    shown = {node: node for node in nodes.values()}
    return FrozenView(with_outputs(graph, shown, output=Need.LOGITS in needs), nodes)
