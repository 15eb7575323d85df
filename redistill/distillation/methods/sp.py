"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.maps import pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets


class SP(DistillationMethod):
    """|| G_t - G_s ||_F^2 / B^2, with G the row-normalised Gram matrix of a batch's flattened maps.

    Matrices are [B, B], so grids and widths are free. The deepest stage by default.
    """

    name = "sp"
    needs = frozenset({Need.STAGES})
    paper = "Tung and Mori, ICCV 2019, arXiv 1907.09682"
    weight = 3000.0

    def __init__(self, *, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        chosen = pairs if self.stages else pairs[-1:]
        return {name: F.mse_loss(similarity(ours), similarity(theirs)) for name, ours, theirs in chosen}


def similarity(value: Tensor) -> Tensor:
    """Row-normalised Gram matrix of the images of a batch, [B, B]."""
    rows = value.flatten(1)
    return F.normalize(rows @ rows.t(), dim=1)
