"""The classifier's task: cross-entropy and distillation, with blended images where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from redistill.errors import ConfigError
from redistill.trainers.data import DataSets
from redistill.trainers.distillation import Distillation, Losses, Need, Targets
from redistill.trainers.settings import DistillationConfig, TargetsConfig
from redistill.trainers.task import Batch, Task
from redistill.trainers.views import PlainView, View


class ClassifierTask(Task):
    """A network that learns labels, and a teacher's answers where there is one.

    Args:
        network: the student.
        data: its images.
        targets: how labels are smoothed and blended.
        config: the weights of the losses.
        student: how the network shows its features; only its output by default.
        teachers: the frozen teachers by name, where there are methods; not registered, hence in no checkpoint.
        distillation: the methods, built already.
    """

    metric: ClassVar[str] = "top1"

    def __init__(
        self,
        network: nn.Module,
        data: DataSets,
        targets: TargetsConfig,
        config: DistillationConfig | None = None,
        student: View | None = None,
        teachers: Mapping[str, View] | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.distillation = distillation or Distillation()
        self.show_student: View = student or PlainView(network)
        self.show_teachers = dict(teachers or {})
        self.train_set, self.validation_set, self.test_set = data.train, data.validation, data.test
        self.smoothing, self.weight = targets.label_smoothing, 1.0 if config is None else config.task
        self.two_stage = self.distillation.two_stage
        self.first_stage_epochs = config.first_stage if config is not None and self.two_stage else 0
        self.skips_parameters = self.two_stage or self.weight == 0
        self.blend = make_blend(targets, data.classes)
        self.channels_last = False
        check_targets(targets, self.distillation)

    def forward(self, batch: Batch, epoch: float = 0.0, first_stage: bool = False) -> Losses:
        """The weighted cross-entropy ("task") and distillation losses of a batch."""
        inputs, targets = self._blended(batch)
        student = self.show_student(inputs)
        losses: Losses = {}
        if self.weight > 0 and not first_stage and student.logits is not None:
            task = F.cross_entropy(student.logits, targets.classes, label_smoothing=self.smoothing)
            losses["task"] = self.weight * task
        teachers = {name: show(inputs) for name, show in self.show_teachers.items()}
        if first_stage:
            return self.distillation.initialise(student, teachers, targets)
        return {**losses, **self.distillation(student, teachers, targets, epoch)}

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Top-1, top-5 and cross-entropy of each image, in percent and nats."""
        labels: Tensor = batch["labels"]
        logits: Tensor = self.network(self._laid_out(batch["inputs"]))
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        found = {"top1": 100.0 * hits[:, 0], "top5": 100.0 * hits.any(dim=1)}
        return {**found, "loss": F.cross_entropy(logits.float(), labels, reduction="none")}

    def prepare(self, device: Any, *, channels_last: bool, compiled: bool) -> None:
        """Move student, helpers and teacher; compile the two networks where asked for."""
        self.channels_last = channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(device=device)
        self.network.to(memory_format=layout)
        for view in (self.show_student, *self.show_teachers.values()):
            module = getattr(view, "module", None)
            if isinstance(module, nn.Module):
                module.to(device=device)
                module.to(memory_format=layout)
                if compiled:
                    module.compile()

    def _blended(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Images and targets, blended while training; second views are the batch's second half."""
        inputs, labels, indices = batch["inputs"], batch["labels"], batch["indices"]
        views = 2 if "strong" in batch else 1
        if views == 2:
            inputs, labels, indices = torch.cat([inputs, batch["strong"]]), labels.repeat(2), indices.repeat(2)
        if self.blend is None or not self.training:
            return self._laid_out(inputs), Targets(labels=labels, indices=indices, views=views)
        inputs, soft = self.blend(inputs, labels)
        return self._laid_out(inputs), Targets(soft=soft, indices=indices, views=views)

    def _laid_out(self, inputs: Tensor) -> Tensor:
        return inputs.to(memory_format=torch.channels_last) if self.channels_last else inputs


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
