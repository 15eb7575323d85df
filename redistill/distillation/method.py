"""The interface of a distillation method: what it needs, how it is built, and the losses it gives.

A method sees two networks through :class:`Outputs` and a batch's targets through :class:`Targets`. It knows nothing of
graphs, optimizers or processes, so each one is its paper's mathematics and little else.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from redistill.errors import TapError

Losses = dict[str, Tensor]
"""Scalar losses by the place where they arise (a tap, a stage, "logits"); the method's loss is their sum."""


class Need(enum.Enum):
    """Something that a method reads."""

    LOGITS = "logits"
    TAPS = "taps"
    STAGES = "stages"
    PREACTIVATIONS = "pre-activations"
    POOLED = "pooled features"
    REENTRY = "the re-entry map"
    COARSE = "maps of pooled stages"
    HARD_LABELS = "one label per image"
    INDICES = "sample indices"


@dataclass(frozen=True)
class Outputs:
    """What one network shows of one batch. Maps are [B, C, H, W], in order from shallow to deep.

    Attributes:
        logits: the network's output; [B, K] for a classifier, [B, C, H, W] for a denoiser.
        taps: the student's RED block outputs, and the teacher's maps that they imitate, under the same names.
        stages: the last map of each stage after its activation.
        preactivations: the same maps before the activation, where signs exist.
        reentry: the first map from which on student and teacher have equal grids for good.
        coarse: the last map of each stage that the student pools, and the teacher's of the first stage of that grid.
    """

    logits: Tensor | None = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    stages: Mapping[str, Tensor] = field(default_factory=dict)
    preactivations: Mapping[str, Tensor] = field(default_factory=dict)
    reentry: Tensor | None = None
    coarse: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def pooled(self) -> Tensor:
        """The spatial mean of the deepest stage, [B, C]."""
        if not self.stages:
            raise TapError("pooled features need at least one stage, and the network shows none")
        return list(self.stages.values())[-1].mean(dim=(-2, -1))


@dataclass(frozen=True)
class Targets:
    """What is known of a batch besides its images.

    Attributes:
        labels: class indices, [B]; absent once MixUp or CutMix has blended the images.
        soft: class weights, [B, K], rows sum to 1; present only after blending.
        indices: positions of the images in the training set, [B].
        views: 2 where the second half of the batch shows the images of the first half once more, augmented strongly.
    """

    labels: Tensor | None = None
    soft: Tensor | None = None
    indices: Tensor | None = None
    views: int = 1

    @property
    def classes(self) -> Tensor:
        """What a cross-entropy takes: soft labels where there are any, class indices else."""
        chosen = self.labels if self.soft is None else self.soft
        if chosen is None:
            raise TapError("the batch carries no labels; use methods that need none, with distillation.task=0")
        return chosen


@dataclass(frozen=True)
class TrainingSet:
    """Facts about the training set that some methods are built from: its size and its labels, [N]."""

    samples: int
    classes: int
    labels: Tensor | None = None


class DistillationMethod(nn.Module, ABC):
    """Base of every method. Options are keyword arguments of the constructor; shapes come later, with :meth:`build`.

    Class attributes:
        name: the word that asks for it, and the label of its losses; by default the class's name in small letters.
        needs: what must be present in the outputs and targets.
        paper: where it was published.
        weight: the published weight of the loss beside the cross-entropy.
        two_stage: whether :meth:`initialise` has losses of its own for a first stage of training.

    Example:
        >>> class Squared(DistillationMethod):
        ...     def losses(self, student, teacher, targets):
        ...         return {"logits": (student.logits - teacher.logits).square().mean()}
        >>> Squared.name, Squared()(Outputs(torch.ones(2, 3)), Outputs(torch.zeros(2, 3)), Targets())
        ('squared', tensor(1.))
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOGITS})
    paper: ClassVar[str] = ""
    weight: ClassVar[float] = 1.0
    two_stage: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create helper parameters for the shapes of these example outputs, or say why the method cannot apply."""

    def begin(self, epoch: float) -> None:
        """Prepare for a step after so many epochs, a fraction within one; before the networks run."""

    def routes(self) -> Mapping[str, nn.Module]:
        """Modules of this method through which the student's maps go while it trains, by the name of a coarse stage."""
        return {}

    @abstractmethod
    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The distillation losses of a batch, by place."""

    def initialise(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The losses of the first stage; only two-stage methods have any."""
        return {}

    def forward(self, student: Outputs, teacher: Outputs, targets: Targets) -> Tensor:
        """The method's loss, a scalar: the sum over its places."""
        return total(self.losses(student, teacher, targets), like=teacher)

    def extra_repr(self) -> str:
        """Show the name in printed modules."""
        return self.name


def total(losses: Losses, like: Outputs) -> Tensor:
    """The sum of scalar losses; a scalar zero where there are none."""
    if losses:
        return torch.stack(list(losses.values())).sum()
    device = like.logits.device if like.logits is not None else None
    return torch.zeros((), device=device)
