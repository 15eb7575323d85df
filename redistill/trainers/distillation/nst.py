"""NST: neuron selectivity transfer (Huang and Wang, arXiv 1707.01219)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from redistill.trainers.distillation.maps import match_size, pair
from redistill.trainers.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets


class NST(DistillationMethod):
    """Per stage the maximum mean discrepancy of channel selectivities, with the kernel k(a, b) = (a . b)^2.

    A channel is a unit vector over the grid; the kernel of all pairs is one batched product, [B, C_s, C_t].
    """

    name = "nst"
    needs = frozenset({Need.STAGES})
    weight = 50.0

    def __init__(self, *, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage."""
        found: Losses = {}
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            a, b = (F.normalize(value.flatten(2), dim=2) for value in match_size(ours, theirs))
            found[name] = kernel_mean(b, b) + kernel_mean(a, a) - 2 * kernel_mean(a, b)
        return found


def kernel_mean(first: Tensor, second: Tensor) -> Tensor:
    """Mean of (a . b)^2 over the batch and all pairs of rows of [B, C, D] and [B, C', D]."""
    return (first @ second.transpose(1, 2)).square().mean()
