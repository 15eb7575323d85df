"""Scaffold: RED blocks that help while the student trains, and are gone before it is deployed.

At each stage that the student pools, a RED block (ReDistill, arXiv 2406.03744, section 3.2) stands behind the stage's
last map x and gives y = x + s (RED(x) - x). The strength s falls from 1 to 0, after which y is x, as with a gate of 1
and a residual of 0. The deployed student has no blocks, so neither its memory nor its arithmetic pays for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.maps import pair, require_equal_grids
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.red import Distance, mean_map_distance
from redistill.distillation.options import choice, positive
from redistill.errors import ConfigError
from redistill.models.red_block import REDBlock


class ScaffoldBlock(nn.Module):
    """y = x + strength (RED(x) - x), maps (B, C, H, W); at strength 0 nothing is computed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = REDBlock(channels)
        self.strength = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Blend the block's output with its input."""
        return torch.lerp(x, self.block(x), self.strength) if self.strength > 0 else x


class LowRankTarget(nn.Module):
    """The teacher's map on its ``rank`` leading principal directions, each of unit variance, (B, rank, H, W)."""

    mean: Tensor
    directions: Tensor

    def __init__(self, maps: Tensor, rank: int) -> None:
        super().__init__()
        points = maps.detach().transpose(0, 1).flatten(1).double()
        mean = points.mean(dim=1, keepdim=True)
        variances, directions = torch.linalg.eigh((points - mean) @ (points - mean).T / points.shape[1])
        leading, scales = directions[:, -rank:], variances[-rank:].clamp(min=1e-12).sqrt()
        self.register_buffer("mean", mean[:, :, None].float())
        self.register_buffer("directions", (leading / scales).float())

    def forward(self, maps: Tensor) -> Tensor:
        """Project, for each position alone."""
        return torch.einsum("bchw,cr->brhw", maps - self.mean, self.directions)


class Scaffold(DistillationMethod):
    """RED's loss at every pooled stage, through blocks that are annealed away.

        target="mean"   the distance of channel means, as RED has it
        target="maps"   mean (A y - P t)^2: the teacher's map on its leading directions P, met by a learnt 1x1 conv A

    The teacher's map is that of its first stage with the grid of the student's pooled one.

    Args:
        epochs: when the strength has fallen to 0, by a cosine.
        target: what of the teacher's map is imitated.
        rank: directions of ``maps``.
        distance: of ``mean``, as for ``red``.
        routed: whether the student itself computes with the blocks' outputs; if not, only the loss sees them.
    """

    name = "scaffold"
    needs = frozenset({Need.COARSE})
    weight = 1.0

    def __init__(
        self,
        *,
        epochs: float = 4.0,
        target: str = "mean",
        rank: int = 16,
        distance: Distance = "cosine",
        routed: bool = True,
    ) -> None:
        super().__init__()
        self.epochs = positive(self.name, "epochs", epochs)
        self.target = choice(self.name, "target", target, ("mean", "maps"))
        self.rank = int(positive(self.name, "rank", rank))
        self.distance = choice(self.name, "distance", distance, ("cosine", "mse"))
        self.routed = routed
        self.blocks, self.heads, self.targets = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Make a block for each pooled stage, and find the teacher's leading directions."""
        if not student.coarse:
            raise ConfigError(
                "scaffold: the student pools no stage to a grid that its teacher has; choose another plan"
            )
        for name, ours, theirs in pair(self.name, student.coarse, teacher.coarse):
            require_equal_grids(self.name, name, ours, theirs)
            self.blocks[_key(name)] = ScaffoldBlock(ours.shape[1])
            if self.target == "maps":
                rank = min(self.rank, theirs.shape[1])
                self.heads[_key(name)] = nn.Conv2d(ours.shape[1], rank, 1)
                self.targets[_key(name)] = LowRankTarget(theirs, rank)

    def begin(self, epoch: float) -> None:
        """Set the strength of so many epochs."""
        progress = min(epoch / self.epochs, 1.0)
        strength = 0.5 + 0.5 * math.cos(math.pi * progress) if progress < 1 else 0.0
        for block in self.blocks.values():
            block.strength = strength  # type: ignore[assignment]  # of modules torch knows only tensors

    def routes(self) -> Mapping[str, nn.Module]:
        """The blocks, to be laid behind the pooled stages."""
        return {name: self.blocks[_key(name)] for name in map(_name, self.blocks)} if self.routed else {}

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage, each divided by their number."""
        pairs = pair(self.name, student.coarse, teacher.coarse)
        return {name: self._loss(name, ours, theirs) / len(pairs) for name, ours, theirs in pairs}

    def _loss(self, name: str, ours: Tensor, theirs: Tensor) -> Tensor:
        ours = ours if self.routed else self.blocks[_key(name)](ours)
        if self.target == "mean":
            return mean_map_distance(ours, theirs, self.distance)
        return F.mse_loss(self.heads[_key(name)](ours), self.targets[_key(name)](theirs))


def _key(name: str) -> str:
    """A stage's name as a module's, which has no dots."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
