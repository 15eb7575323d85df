"""OFD: a comprehensive overhaul of feature distillation (Heo et al., ICCV 2019, arXiv 1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redistill.distillation.maps import key, match_size, match_width, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.ab import grid_ratio

RARE = 1e-3


class OFD(DistillationMethod):
    """Partial squared distance of pre-activations, with a margin below zero for what the teacher keeps silent.

        t > 0          (c - t)^2
        m < t <= 0     (c - t)^2  where c > t
        t <= m         (c - m)^2  where c > m

    summed over C, H, W, averaged over the batch; stage l of L weighs 2^(l-L). c is the student's map after a 1x1
    convolution and batch norm, m_c = E[t | t < 0] of each teacher channel taken as Gaussian, with mean and deviation
    measured on the images the method is built from (the paper takes them from the batch norm, which a residual addition
    then shifts).
    """

    name = "ofd"
    needs = frozenset({Need.PREACTIVATIONS})
    paper = "Heo et al., ICCV 2019, arXiv 1904.01866"
    weight = 1e-3

    def __init__(self, *, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.connectors = nn.ModuleDict()
        self.margins = nn.ParameterDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create the connectors and measure the margins."""
        for name, ours, theirs in pair(self.name, student.preactivations, teacher.preactivations, self.stages):
            self.connectors[key(name)] = match_width(ours, theirs, norm=True, bias=False)
            deviation, mean = torch.std_mean(theirs.float(), dim=(0, 2, 3), correction=0)
            self.margins[key(name)] = nn.Parameter(negative_mean(mean, deviation), requires_grad=False)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage, the deepest with weight 1."""
        pairs = pair(self.name, student.preactivations, teacher.preactivations, self.stages)
        found: Losses = {}
        for level, (name, ours, theirs) in enumerate(pairs):
            share = 2.0 ** (level + 1 - len(pairs)) * grid_ratio(ours, theirs)
            ours, theirs = match_size(ours, theirs)
            margin = self.margins[key(name)][None, :, None, None]
            distance = partial_distance(self.connectors[key(name)](ours), theirs, margin)
            found[name] = share * distance.sum() / len(ours)
        return found


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to max(t, m), elementwise; none where the teacher is silent and the student lower still."""
    target = torch.maximum(teacher, margin)
    return (student - target).square() * ((student > target) | (teacher > 0))


def negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of Gaussians, [C]; minus three deviations where x < 0 in less than one case of a thousand."""
    ratio = mean.double() / deviation.double().clamp_min(1e-12)
    chance = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    closed_form = mean - deviation * (density / chance.clamp_min(1e-300)).to(mean.dtype)
    return torch.where(chance > RARE, closed_form, -3 * deviation)
