"""How a network is optimised: the optimizer, its learning rate over time, and the length of it all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from redistill.config.checks import (
    AboveZero,
    Count,
    Inside,
    NotNegative,
    Positive,
    Section,
    Share,
    ShareBelowOne,
    require,
)


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer.

    Attributes:
        name: sgd (with momentum) or adamw.
        decay_norms: whether norms' weights and all biases decay too, as in the older recipes.
    """

    place: ClassVar[str] = "optimizer"

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: AboveZero = 0.05
    momentum: ShareBelowOne = 0.9
    nesterov: bool = False
    betas: tuple[ShareBelowOne, ...] = (0.9, 0.999)
    weight_decay: NotNegative = 5e-4
    decay_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.betas) == 2, f"optimizer.betas={list(self.betas)}: give two, such as [0.9, 0.999]")


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The learning rate over time, as a factor of the optimizer's.

    Attributes:
        warmup: epochs of linear rise from 0 before the schedule.
        warmup_steps: optimizer steps of that rise, instead of epochs.
        milestones: epochs after which `step` multiplies by gamma.
        floor: the factor at which `cosine` ends.
        rise: the share of the run in which `one_cycle` rises.
    """

    place: ClassVar[str] = "schedule"

    name: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    warmup: NotNegative = 0.0
    warmup_steps: Count | None = None
    milestones: tuple[NotNegative, ...] = ()
    gamma: AboveZero = 0.1
    floor: Share = 0.0
    rise: Inside = 0.3


@dataclass(frozen=True)
class RecipeConfig(Section):
    """How a network is optimised.

    Attributes:
        epochs: passes over the training set, 0 to leave the network as it is; `steps`, where given, counts optimizer
            steps instead.
        batch_size: images of one optimizer step, over all processes and accumulated parts.
        accumulation: parts into which each process divides its share of a batch.
        clip_norm: the largest gradient norm, or none.
        ema: decay of the weights' moving average, or none; the average is then what is evaluated and delivered.
    """

    place: ClassVar[str] = "recipe"

    epochs: Count = 30
    steps: Positive | None = None
    batch_size: Positive = 64
    accumulation: Positive = 1
    clip_norm: AboveZero | None = None
    ema: Inside | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
