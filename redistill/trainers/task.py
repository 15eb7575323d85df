"""What the loop trains: a task owns the network, its losses and its data; the loop owns time, processes and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from redistill.config.settings import DistillationConfig
from redistill.data.datasets import DataSets
from redistill.distillation import Distiller, Losses, Targets

Batch = dict[str, Any]


class Task(nn.Module, ABC):
    """Base of the classifier's and the denoiser's task.

    Its registered submodules are what is optimised and checkpointed: the network and the losses' helpers. Teachers are
    not registered, hence in no checkpoint.

    Args:
        network: what is trained, averaged, measured and delivered; a :class:`~redistill.Distiller` where it learns
            from teachers and not from the data alone.
        data: its images; items are dictionaries of tensors and numbers with "inputs".
        config: the weights of the losses.

    Attributes:
        first_stage_epochs: epochs of a first stage with losses of its own, before the schedule starts.
        skips_parameters: whether some step gives some parameter no gradient.
    """

    distiller: Distiller
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        data: DataSets,
        config: DistillationConfig | None = None,
    ) -> None:
        super().__init__()
        self.learn_by(network if isinstance(network, Distiller) else Distiller(network))
        self.train_set: Any = data.train
        self.validation_set: Dataset[Batch] = data.validation
        self.test_set: Dataset[Batch] = data.test
        two_stage, self.weight = self.distillation.two_stage, 1.0 if config is None else config.task
        self.first_stage_epochs = config.first_stage if config is not None and two_stage else 0
        self.skips_parameters = two_stage or self.weight == 0
        self.channels_last = False

    def learn_by(self, distiller: Distiller) -> None:
        """Train the distiller's student from now on. Its parts are registered, under the names of all checkpoints."""
        self.network, self.distillation = distiller.student, distiller.distillation
        self.__dict__["distiller"] = distiller

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
        for view in self.distiller.views:
            view.module.to(device=device)
            view.module.to(memory_format=layout)
            if compiled:
                view.module.compile()

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        targets: Targets,
        task_loss: Callable[[Tensor], Tensor],
        epoch: float,
        first_stage: bool,
    ) -> Losses:
        """The task's own loss of the student's output, by ``task_loss(output)``, and those of all methods."""
        output, losses = self.distiller.compare(inputs, targets, epoch, first_stage)
        if first_stage or self.weight == 0:
            return losses
        return {"task": self.weight * task_loss(output), **losses}

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory format of the networks."""
        return images.to(memory_format=torch.channels_last) if self.channels_last else images
