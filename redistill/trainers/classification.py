"""The classifier's task: cross-entropy and distillation, with blended images where asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from redistill.config.settings import DistillationConfig, TargetsConfig
from redistill.data.datasets import DataSets
from redistill.distillation import Distillation, Losses, Need, Targets
from redistill.errors import ConfigError
from redistill.trainers.task import Batch, Task


class ClassifierTask(Task):
    """A network that learns labels, and a teacher's answers where there is one.

    Args:
        network, data, config: as :class:`Task` takes them.
        targets: how labels are smoothed and blended.
    """

    metric: ClassVar[str] = "top1"

    def __init__(
        self,
        network: nn.Module,
        data: DataSets,
        targets: TargetsConfig,
        config: DistillationConfig | None = None,
    ) -> None:
        super().__init__(network, data, config)
        self.smoothing = targets.label_smoothing
        self.blend = make_blend(targets, data.classes)
        check_targets(targets, self.distillation)

    def forward(self, batch: Batch, epoch: float = 0.0, first_stage: bool = False) -> Losses:
        """The weighted cross-entropy ("task") and distillation losses of a batch."""
        inputs, targets = self._blended(batch)

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets.classes, label_smoothing=self.smoothing)

        return self.learn((inputs,), targets, cross_entropy, epoch, first_stage)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Top-1, top-5 and cross-entropy of each image, in percent and nats."""
        labels: Tensor = batch["labels"]
        logits: Tensor = self.network(self.laid_out(batch["inputs"]))
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        found = {"top1": 100.0 * hits[:, 0], "top5": 100.0 * hits.any(dim=1)}
        return {**found, "loss": F.cross_entropy(logits.float(), labels, reduction="none")}

    def _blended(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Images and targets, blended while training; second views are the batch's second half."""
        inputs, labels, indices = batch["inputs"], batch["labels"], batch["indices"]
        views = 2 if "strong" in batch else 1
        if views == 2:
            inputs, labels, indices = torch.cat([inputs, batch["strong"]]), labels.repeat(2), indices.repeat(2)
        if self.blend is None or not self.training:
            return self.laid_out(inputs), Targets(labels=labels, indices=indices, views=views)
        inputs, soft = self.blend(inputs, labels)
        return self.laid_out(inputs), Targets(soft=soft, indices=indices, views=views)


def make_blend(targets: TargetsConfig, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """torchvision's MixUp, CutMix, or one of both at random: (images, labels) to (images, soft labels [B, K])."""
    if targets.mixing == "none":
        return None
    kinds = {"mixup": [v2.MixUp], "cutmix": [v2.CutMix], "either": [v2.CutMix, v2.MixUp]}[targets.mixing]
    blends = [kind(alpha=targets.mixing_alpha, num_classes=classes) for kind in kinds]
    return v2.RandomChoice(blends) if len(blends) > 1 else blends[0]  # type: ignore[no-any-return]


def check_targets(targets: TargetsConfig, distillation: Distillation) -> None:
    """Refuse methods that need single labels where images are blended."""
    for part in distillation.parts:
        if targets.mixing != "none" and Need.HARD_LABELS in part.method.needs:
            raise ConfigError(
                f"{part.label} contrasts single images and cannot use blended ones; --set targets.mixing=none"
            )
