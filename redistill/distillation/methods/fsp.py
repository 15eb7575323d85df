"""FSP: the flow of solution procedure (Yim et al., CVPR 2017). Two stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.maps import match_size, pair, require_equal_widths
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.errors import TapError


class FSP(DistillationMethod):
    """First stage: mean ( M_s - M_t )^2 of M = f_i f_(i+1)^T / HW for consecutive stages; second stage: the task alone.

    M is [C_i, C_(i+1)], so grids are free and widths must be equal.
    """

    name = "fsp"
    needs = frozenset({Need.STAGES})
    paper = "Yim et al., CVPR 2017"
    weight = 50.0
    two_stage = True

    def __init__(self, *, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that there are two stages at least, of equal widths."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        if len(pairs) < 2:
            raise TapError(f"fsp: relates consecutive stages and finds only {pairs[0][0]}; give two stages or more")
        for name, ours, theirs in pairs:
            require_equal_widths(self.name, name, ours, theirs, "its matrices have one row a channel; use at or nst")

    def initialise(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss for each two consecutive stages."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        return {
            f"{first[0]}-{second[0]}": F.mse_loss(flow(first[1], second[1]), flow(first[2], second[2]))
            for first, second in pairwise(pairs)
        }

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """Nothing: in the second stage only the task teaches."""
        return {}


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the grid of the outer product of two maps' channels, [B, C_i, C_j]."""
    first, second = match_size(first, second)
    return torch.einsum("bchw,bdhw->bcd", first, second) / (first.shape[-2] * first.shape[-1])
