"""RED: the student's taps imitate the teacher's channel means (ReDistill, arXiv 2406.03744, section 3.3).

The residual-encoder block itself is part of the student; here is only the loss on its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.maps import pair, require_equal_grids
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import choice
from redistill.errors import TapError

Distance = Literal["cosine", "mse"]


class RED(DistillationMethod):
    """Distance between channel-mean maps m = mean_C(x), averaged over the taps.

        cosine   mean_b [ 1 - cos(vec m_s, vec m_t) ]
        mse      mean_bhw (m_s - m_t)^2

    Widths may differ, grids may not. All taps, unless some are chosen: with several teachers each tap may have its own.
    """

    name = "red"
    needs = frozenset({Need.TAPS})
    paper = "ReDistill, arXiv 2406.03744, section 3.3"
    weight = 1.0

    def __init__(self, *, distance: Distance = "cosine", taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.distance = choice(self.name, "distance", distance, ("cosine", "mse"))

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that there are taps, and that each meets a teacher map of its own grid."""
        if not student.taps:
            raise TapError(
                'red: the student has no taps; make it with taps="auto" (student.taps=auto in a configuration) and a '
                "budget that their RED blocks fit, or use kd or reentry, which need none"
            )
        for name, ours, theirs in pair(self.name, student.taps, teacher.taps, self.taps):
            require_equal_grids(self.name, name, ours, theirs)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a tap, each divided by the number of taps."""
        pairs = pair(self.name, student.taps, teacher.taps, self.taps)
        return {name: mean_map_distance(ours, theirs, self.distance) / len(pairs) for name, ours, theirs in pairs}


def mean_map_distance(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """Distance of the channel means of two maps of equal grid, a scalar."""
    return vector_distance(student.mean(dim=1).flatten(1), teacher.mean(dim=1).flatten(1), distance)


def vector_distance(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """Mean over the batch of one minus the cosine, or the mean squared error, of row vectors [B, D]."""
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    return F.mse_loss(student, teacher)
