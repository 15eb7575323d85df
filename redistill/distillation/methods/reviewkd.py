"""ReviewKD: knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.maps import key, match_size, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive

POOLED = "pooled"
LEVELS = (4, 2, 1)


class ReviewKD(DistillationMethod):
    """Deep features review shallow ones: a chain of attention fusions from the pooled vector up to the first stage.

    Each fusion blends a stage's map with the deeper residual, and a 3x3 convolution brings it to the teacher's width,
    where it is compared by squared errors on a pyramid of grids. Its published weight is 1 on ImageNet and up to 8
    elsewhere, with the first epochs as a ramp (`warmup`). The larger grid is pooled to the smaller, as everywhere here.
    """

    name = "reviewkd"
    needs = frozenset({Need.PREACTIVATIONS, Need.POOLED})
    paper = "Chen et al., CVPR 2021, arXiv 2104.09044"
    weight = 1.0

    def __init__(self, *, width: int = 512) -> None:
        super().__init__()
        self.width = int(positive(self.name, "width", width))
        self.fusions = nn.ModuleDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create one fusion a stage and one for the pooled vector."""
        pairs = review_order(self.name, student, teacher)
        width = min(self.width, pairs[0][1].shape[1])
        for depth, (name, ours, theirs) in enumerate(pairs):
            self.fusions[key(name)] = Fusion(ours.shape[1], width, theirs.shape[1], blends=depth > 0)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage, deep to shallow."""
        residual: Tensor | None = None
        found: Losses = {}
        for name, ours, theirs in review_order(self.name, student, teacher):
            output, residual = self.fusions[key(name)](ours, residual)
            found[name] = pyramid_distance(*match_size(output, theirs))
        return found


class Fusion(nn.Module):
    """Attention-based fusion of a map [B, C, H, W] with the residual of the deeper one [B, M, h, w]."""

    def __init__(self, inputs: int, width: int, outputs: int, *, blends: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.expand = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Conv2d(2 * width, 2, 1) if blends else None
        for module in (*self.reduce, *self.expand):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, value: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map in the teacher's width, and the residual for the next shallower stage."""
        fused: Tensor = self.reduce(value)
        if self.attention is not None and residual is not None:
            deeper = F.interpolate(residual, size=fused.shape[-2:], mode="nearest")
            gates = torch.sigmoid(self.attention(torch.cat([fused, deeper], dim=1)))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        return self.expand(fused), fused


def review_order(method: str, student: Outputs, teacher: Outputs) -> list[tuple[str, Tensor, Tensor]]:
    """The pooled vectors as 1x1 maps, then the stages from deep to shallow."""
    pooled = (POOLED, student.pooled[:, :, None, None], teacher.pooled[:, :, None, None])
    return [pooled, *reversed(pair(method, student.preactivations, teacher.preactivations))]


def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of two maps and of their poolings to 4, 2 and 1 cells a side, each level half the weight before."""
    distance = F.mse_loss(student, teacher)
    weight, weights = 1.0, 1.0
    for side in LEVELS:
        if side >= student.shape[-2]:
            continue
        weight /= 2
        weights += weight
        ours, theirs = F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)
        distance = distance + weight * F.mse_loss(ours, theirs)
    return distance / weights
