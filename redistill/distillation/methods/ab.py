"""AB: transfer of activation boundaries (Heo et al., AAAI 2019, arXiv 1811.03233). Two stages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from redistill.distillation.maps import key, match_size, match_width, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive

SCALE = 3 / 1000


class AB(DistillationMethod):
    """First stage: which neurons fire is taught by a hinge around zero; second stage: the task alone.

    With c the student's pre-activation and t the teacher's, summed over C, H, W, averaged over the batch:

        (c + m)^2 where c > -m and t <= 0,     (c - m)^2 where c <= m and t > 0

    Stage l of L weighs 2^(l-L). Maps that had to be pooled count as many elements as the teacher's own grid, so that
    the loss does not shrink with the student's grid.
    """

    name = "ab"
    needs = frozenset({Need.PREACTIVATIONS})
    paper = "Heo et al., AAAI 2019, arXiv 1811.03233"
    weight = 1.0
    two_stage = True

    def __init__(self, *, margin: float = 1.0, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.margin = positive(self.name, "margin", margin)
        self.stages = tuple(stages)
        self.connectors = nn.ModuleDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create a connector where widths differ."""
        for name, ours, theirs in pair(self.name, student.preactivations, teacher.preactivations, self.stages):
            same = ours.shape[1] == theirs.shape[1]
            self.connectors[key(name)] = nn.Identity() if same else match_width(ours, theirs, norm=True)

    def initialise(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage, the deepest with weight 1."""
        pairs = pair(self.name, student.preactivations, teacher.preactivations, self.stages)
        found: Losses = {}
        for level, (name, ours, theirs) in enumerate(pairs):
            share = 2.0 ** (level + 1 - len(pairs)) * grid_ratio(ours, theirs)
            ours, theirs = match_size(ours, theirs)
            boundary = boundary_distance(self.connectors[key(name)](ours), theirs, self.margin)
            found[name] = SCALE * share * boundary.sum() / len(ours)
        return found

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """Nothing: in the second stage only the task teaches."""
        return {}


def boundary_distance(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distance of each neuron to the right side of the margin, elementwise."""
    fires = teacher > 0
    return (margin + student).clamp_min(0).square() * ~fires + (margin - student).clamp_min(0).square() * fires


def grid_ratio(student: Tensor, teacher: Tensor) -> float:
    """How many elements of the teacher's grid stand for one of the grid on which both are compared."""
    compared = [min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    return float(teacher.shape[-2] * teacher.shape[-1]) / float(compared[0] * compared[1])
