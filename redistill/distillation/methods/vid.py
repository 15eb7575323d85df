"""VID: variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.maps import key, match_size, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive


class VID(DistillationMethod):
    """Per stage the Gaussian negative log-likelihood mean 0.5 [ (mu - f_t)^2 / v + log v ] of the teacher's map.

    mu comes from the student's map by three 1x1 convolutions, v_c = softplus(a_c) + eps is one variance a teacher
    channel; both are learnt.
    """

    name = "vid"
    needs = frozenset({Need.STAGES})
    paper = "Ahn et al., CVPR 2019, arXiv 1904.05835"
    weight = 1.0

    def __init__(self, *, variance: float = 5.0, eps: float = 1e-5, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.variance = positive(self.name, "variance", variance)
        self.eps = positive(self.name, "eps", eps)
        self.stages = tuple(stages)
        self.means = nn.ModuleDict()
        self.scales = nn.ParameterDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create the mean network and the variances of each stage."""
        initial = math.log(math.expm1(self.variance - self.eps))
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            self.means[key(name)] = _mean_network(ours.shape[1], theirs.shape[1])
            self.scales[key(name)] = nn.Parameter(torch.full((theirs.shape[1],), initial))

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage."""
        found: Losses = {}
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            ours, theirs = match_size(ours, theirs)
            found[name] = self.likelihood(key(name), ours, theirs)
        return found

    def likelihood(self, place: str, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean negative log-likelihood without its constant; it may be below zero."""
        variance = (F.softplus(self.scales[place]) + self.eps)[None, :, None, None]
        error: Tensor = (self.means[place](student) - teacher).square()
        return 0.5 * (error / variance + variance.log()).mean()


def _mean_network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, kernel_size=1, bias=False),
    )
