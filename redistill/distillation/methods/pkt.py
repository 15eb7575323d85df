"""PKT: probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets

EPS = 1e-7


class PKT(DistillationMethod):
    """mean_ij q_t log(q_t / q_s), with q the rows of (1 + cosine) / 2 made to sum to 1, of a batch's pooled features.

    A mean over B^2 entries, hence the large weight.
    """

    name = "pkt"
    needs = frozenset({Need.POOLED})
    paper = "Passalis and Tefas, ECCV 2018, arXiv 1803.10837"
    weight = 30000.0

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The divergence of the two affinity matrices."""
        ours, theirs = affinities(student.pooled), affinities(teacher.pooled)
        return {"pooled": (theirs * ((theirs + EPS) / (ours + EPS)).log()).mean()}


def affinities(features: Tensor) -> Tensor:
    """Row-stochastic affinities [B, B], diagonal included."""
    unit = F.normalize(features, dim=1)
    affinity = (1 + unit @ unit.t()) / 2
    return affinity / affinity.sum(dim=1, keepdim=True)
