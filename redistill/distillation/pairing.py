"""Teachers of another architecture: what the student shows is paired with teacher nodes of equal grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.distillation.features import Feature, FeatureKind, Nodes
from redistill.errors import TapError
from redistill.planning.partition import find_stages
from redistill.planning.stages import Stage
from redistill.student import Student, record_of
from redistill.tracing.capture import capture
from redistill.tracing.outputs import with_outputs


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


def capture_like(student: Student, teacher: nn.Module) -> GraphModule:
    """The teacher's graph, over its own weights, on inputs like the student's."""
    return capture(teacher, record_of(student).example(_device(teacher)), check=False).graph_module


def pair_by_grid(student: Student, teacher: nn.Module, nodes: Nodes) -> tuple[GraphModule, dict[Feature, str]]:
    """The teacher's graph, and its own nodes of equal height and width for the student's features ``nodes``.

    Of several teacher stages with one grid the deepest counts. What finds no equal grid is left out.

    Raises:
        TapError: none of the student's maps has the grid of any teacher stage.
    """
    graph = capture_like(student, teacher)
    partition = find_stages(graph, example_inputs(student, teacher))
    stages = {stage.grid: stage for stage in partition.stages if not stage.boundary}
    found = {
        feature: _node(stages[grid], feature) for feature, grid in _grids(student, nodes).items() if grid in stages
    }
    if not found:
        known = ", ".join(f"{height}x{width}" for height, width in stages)
        raise TapError(f"no map of the student has a grid of {type(teacher).__name__} ({known}); choose another plan")
    return graph, found


def _grids(student: Student, nodes: Nodes) -> dict[Feature, tuple[int, int]]:
    """Height and width of the student's features."""
    module = with_outputs(student, {node: node for node in nodes.values()})
    training = student.training
    with torch.no_grad():
        student.eval()
        _, maps = module.eval()(*example_inputs(student, student))
    student.train(training)
    return {feature: (maps[node].shape[-2], maps[node].shape[-1]) for feature, node in nodes.items()}


def example_inputs(student: Student, network: nn.Module) -> tuple[Tensor, ...]:
    """Zeros like the inputs that the student was made for, where the network is."""
    return tuple(spec.example().to(_device(network)) for spec in record_of(student).provenance.inputs)


def _device(network: nn.Module) -> torch.device | None:
    return next((p.device for p in network.parameters()), None)


def _node(stage: Stage, feature: Feature) -> str:
    return stage.pre_activation if feature.kind is FeatureKind.PREACTIVATION else stage.output
