"""NST: neuron selectivity transfer (Huang and Wang, arXiv 1707.01219)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.maps import match_size, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets


class NST(DistillationMethod):
    """Per stage the maximum mean discrepancy of channel selectivities, with the kernel k(a, b) = (a . b)^2.

    A channel is a unit vector over the grid. The kernel of all pairs is summed over channels, [B, C, C'], or
    as the inner product of the two grids' Gram matrices, [B, HW, HW], whichever is smaller.
    """

    name = "nst"
    needs = frozenset({Need.STAGES})
    paper = "Huang and Wang, arXiv 1707.01219"
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
    pairs = first.shape[1] * second.shape[1]
    if first.shape[2] ** 2 >= pairs:
        return (first @ second.transpose(1, 2)).square().mean()
    grams = [value.transpose(1, 2) @ value for value in (first, second)]
    return (grams[0] * grams[1]).sum() / (len(first) * pairs)
