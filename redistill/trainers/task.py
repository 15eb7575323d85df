"""What the loop trains: a task owns the network, its losses and its data; the loop owns time, processes and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from redistill.trainers.distillation import Losses

Batch = dict[str, Any]


class Task(nn.Module, ABC):
    """Base of the classifier's and the denoiser's task.

    Its registered submodules are what is optimised and checkpointed: the network and the losses' helpers. A frozen
    teacher is held outside of them.

    Attributes:
        network: what is trained, averaged, measured and delivered.
        train_set: items are dictionaries of tensors and numbers with "inputs".
        first_stage_epochs: epochs of a first stage with losses of its own, before the schedule starts.
        skips_parameters: whether some step gives some parameter no gradient.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    network: nn.Module
    train_set: Any
    validation_set: Dataset[Batch]
    test_set: Dataset[Batch]
    first_stage_epochs: int = 0
    skips_parameters: bool = False

    @abstractmethod
    def forward(self, batch: Batch, epoch: float = 0.0, first_stage: bool = False) -> Losses:
        """Weighted scalar loss terms by name; their sum is minimised."""

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """One value an item for each metric, [B]; their means over a set are reported."""

    @abstractmethod
    def prepare(self, device: Any, *, channels_last: bool, compiled: bool) -> None:
        """Move everything to the device, the teacher too, before the first step."""
