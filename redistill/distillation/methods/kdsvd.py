"""KDSVD: self-supervised distillation by singular vectors (Lee, Kim and Song, ECCV 2018, arXiv 1807.06819)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.maps import key, match_width, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive
from redistill.errors import TapError

SPARE = 3
BANDWIDTH = 8.0


class KDSVD(DistillationMethod):
    """Correlations of the leading right singular vectors of consecutive stages.

    A map is a matrix [HW, C], whose right singular vectors have one entry a channel: grids are free, widths are matched
    by a 1x1 convolution. The student's k + 3 leading vectors are aligned to the teacher's k by their largest |cosine|,
    both are scaled by the teacher's normalised singular values, and

        loss = (1/B) sum ( exp(-(v_i - v_j)^2 / 8)_s - exp(-(v_i - v_j)^2 / 8)_t )^2

    over all channel pairs (i, j) of consecutive stages. A singular vector's sign is arbitrary and the kernel is not
    blind to it, so the teacher's vectors are turned to a sum that is not negative.
    """

    name = "kdsvd"
    needs = frozenset({Need.STAGES})
    paper = "Lee, Kim and Song, ECCV 2018, arXiv 1807.06819"
    weight = 1.0

    def __init__(self, *, vectors: int = 1, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.vectors = int(positive(self.name, "vectors", vectors))
        self.stages = tuple(stages)
        self.connectors = nn.ModuleDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create a connector where widths differ."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        if len(pairs) < 2:
            raise TapError(f"kdsvd: relates consecutive stages and finds only {pairs[0][0]}; give two stages or more")
        for name, ours, theirs in pairs:
            same = ours.shape[1] == theirs.shape[1]
            self.connectors[key(name)] = nn.Identity() if same else match_width(ours, theirs)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss for each two consecutive stages."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        vectors = [(name, *self.aligned(self.connectors[key(name)](ours), theirs)) for name, ours, theirs in pairs]
        found: Losses = {}
        for (above, s_above, t_above), (name, ours, theirs) in pairwise(vectors):
            difference = correlation(ours, s_above) - correlation(theirs, t_above)
            found[f"{above}-{name}"] = difference.square().sum() / len(ours)
        return found

    def aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of both maps, [B, C, k] each, in the teacher's order and signs."""
        theirs, strength = leading_vectors(teacher, self.vectors)
        theirs = torch.where(theirs.sum(dim=1, keepdim=True) < 0, -theirs, theirs)
        ours, _ = leading_vectors(student, self.vectors + SPARE)
        cosines = ours.transpose(1, 2) @ theirs
        best = cosines.abs().argmax(dim=1, keepdim=True)
        choice = torch.zeros_like(cosines).scatter(1, best, cosines.gather(1, best).sign())
        scale = F.normalize(strength, dim=1)[:, None]
        return (ours @ choice.detach()) * scale, theirs * scale


def leading_vectors(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading right singular vectors [B, C, n] and values [B, n] of the maps as [HW, C], n <= count.

    The gradient is that of one step of the power iteration M^T M v: it leaves the vectors as they are, and stays
    bounded where singular values coincide and the exact gradient does not exist.
    """
    matrix = value.flatten(2).transpose(1, 2)
    _, strength, rows = torch.linalg.svd(matrix.detach(), full_matrices=False)
    vectors = rows[:, :count].transpose(1, 2)
    return F.normalize(matrix.transpose(1, 2) @ (matrix @ vectors), dim=1), strength[:, :count]


def correlation(deep: Tensor, shallow: Tensor) -> Tensor:
    """Gaussian kernel of all pairs of vector entries, [B, C, C', k]."""
    return (-(deep[:, :, None] - shallow[:, None]).square() / BANDWIDTH).exp()
