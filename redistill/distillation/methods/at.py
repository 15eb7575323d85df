"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.maps import match_size, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets
from redistill.distillation.options import positive


class AT(DistillationMethod):
    """Per stage mean_b,hw ( A(f_s) - A(f_t) )^2 with A(f) = Norm2( vec mean_C |f|^p ).

    Attention is computed on each network's own grid and then pooled: squaring first, as in the paper.
    """

    name = "at"
    needs = frozenset({Need.STAGES})
    paper = "Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928"
    weight = 1000.0

    def __init__(self, *, power: float = 2.0, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.power = positive(self.name, "power", power)
        self.stages = tuple(stages)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage."""
        found: Losses = {}
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            ours, theirs = match_size(self.energy(ours), self.energy(theirs))
            found[name] = F.mse_loss(F.normalize(ours.flatten(1)), F.normalize(theirs.flatten(1)))
        return found

    def energy(self, value: Tensor) -> Tensor:
        """Channel mean of |f|^p, [B, 1, H, W]."""
        return value.abs().pow(self.power).mean(dim=1, keepdim=True)
