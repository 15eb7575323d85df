"""RKD: relational distillation by distances and angles (Park et al., CVPR 2019, arXiv 1904.05068)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets

TINY = 1e-12


class RKD(DistillationMethod):
    """25 smoothL1 of distances + 50 smoothL1 of angles, between the pooled features of a batch.

        D_ij   = |e_i - e_j| / mean of the positive distances
        A_ijk  = < (e_i - e_j)^ , (e_k - e_j)^ >

    Angles come from the Gram matrix, so the largest tensor is [B, B, B] and never [B, B, C].
    """

    name = "rkd"
    needs = frozenset({Need.POOLED})
    paper = "Park et al., CVPR 2019, arXiv 1904.05068"
    weight = 1.0

    def __init__(self, *, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance = distance
        self.angle = angle

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The two relational losses, weighted."""
        ours, theirs = student.pooled, teacher.pooled
        return {
            "distance": self.distance * F.smooth_l1_loss(distances(ours), distances(theirs)),
            "angle": self.angle * F.smooth_l1_loss(angles(ours), angles(theirs)),
        }


def distances(features: Tensor) -> Tensor:
    """Distances of all pairs over the mean of the positive ones, [B, B], zero on the diagonal."""
    raw = _pairwise(features)
    positive = raw > 0
    return raw / (raw.sum() / positive.sum().clamp_min(1)).clamp_min(TINY)


def angles(features: Tensor) -> Tensor:
    """Cosines of the angles at vertex j between i and k, [B (j), B (i), B (k)]; zero where an edge has no length."""
    centred = features - features.mean(dim=0)
    gram = centred @ centred.t()
    at_vertex = gram.diagonal()
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + at_vertex[:, None, None]
    lengths = _pairwise(features)
    inverse = torch.where(lengths > 0, 1 / lengths.clamp_min(TINY), 0.0)
    return products * inverse[:, :, None] * inverse[:, None, :]


def _pairwise(features: Tensor) -> Tensor:
    """Euclidean distances [B, B]; equal rows, the diagonal among them, have distance and gradient zero."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
