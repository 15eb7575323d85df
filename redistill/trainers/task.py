"""What the loop trains: a task owns the network, its losses and its data; the loop owns time, processes and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from redistill.config.settings import DistillationConfig
from redistill.data.datasets import DataSets
from redistill.distillation import Distillation, Losses, Targets
from redistill.distillation.views import PlainView, View

Batch = dict[str, Any]


@dataclass(frozen=True)
class Lessons:
    """What a student learns by.

    Attributes:
        student: how the network shows its features.
        teachers: the frozen teachers by name.
        distillation: the methods that compare them.
    """

    student: View
    teachers: Mapping[str, View] = field(default_factory=dict)
    distillation: Distillation = field(default_factory=Distillation)


class Task(nn.Module, ABC):
    """Base of the classifier's and the denoiser's task.

    Its registered submodules are what is optimised and checkpointed: the network and the losses' helpers. Teachers are
    not registered, hence in no checkpoint.

    Args:
        network: what is trained, averaged, measured and delivered.
        data: its images; items are dictionaries of tensors and numbers with "inputs".
        config: the weights of the losses.
        lessons: teachers and methods; by default the network learns from the data alone.

    Attributes:
        first_stage_epochs: epochs of a first stage with losses of its own, before the schedule starts.
        skips_parameters: whether some step gives some parameter no gradient.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        data: DataSets,
        config: DistillationConfig | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        super().__init__()
        lessons = lessons or Lessons(PlainView(network))
        self.network = network
        self.distillation = lessons.distillation
        self.show_student, self.show_teachers = lessons.student, dict(lessons.teachers)
        self.train_set: Any = data.train
        self.validation_set: Dataset[Batch] = data.validation
        self.test_set: Dataset[Batch] = data.test
        two_stage, self.weight = self.distillation.two_stage, 1.0 if config is None else config.task
        self.first_stage_epochs = config.first_stage if config is not None and two_stage else 0
        self.skips_parameters = two_stage or self.weight == 0
        self.channels_last = False

    @abstractmethod
    def forward(self, batch: Batch, epoch: float = 0.0, first_stage: bool = False) -> Losses:
        """Weighted scalar loss terms by name; their sum is minimised."""

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """One value an item for each metric, [B]; their means over a set are reported."""

    def picture(self) -> Tensor | None:
        """Images [N, C, H, W] in [0, 1] that show what the network does, where it makes any."""
        return None

    def prepare(self, device: Any, *, channels_last: bool, compiled: bool) -> None:
        """Move everything to the device, the teachers too, before the first step; compile where asked for."""
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

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        targets: Targets,
        task_loss: Callable[[Tensor], Tensor],
        epoch: float,
        first_stage: bool,
    ) -> Losses:
        """The task's own loss of the student's output, by ``task_loss(output)``, and those of all methods."""
        student = self.show_student(*inputs)
        losses: Losses = {}
        if self.weight > 0 and not first_stage and student.logits is not None:
            losses["task"] = self.weight * task_loss(student.logits)
        teachers = {name: show(*inputs) for name, show in self.show_teachers.items()}
        if first_stage:
            return self.distillation.initialise(student, teachers, targets)
        return {**losses, **self.distillation(student, teachers, targets, epoch)}

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory format of the networks."""
        return images.to(memory_format=torch.channels_last) if self.channels_last else images
