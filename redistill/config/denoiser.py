"""What can be set of a denoiser's experiment. Defaults are the recipe of Ho et al. (2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from redistill.config.settings import (
    DataConfig,
    ExperimentConfig,
    OptimizerConfig,
    RecipeConfig,
    ScheduleConfig,
    TeacherConfig,
)
from redistill.diffusion import NoiseSchedule, Prediction
from redistill.errors import ConfigError

ADAM = OptimizerConfig(name="adamw", learning_rate=2e-4, weight_decay=0.0)
WARM_UP = ScheduleConfig(name="constant", warmup_steps=5000)
CIFAR10 = DataConfig(name="cifar10")


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise, and what a network is asked about it.

    Attributes:
        timesteps: how many there are.
        first_beta: beta of the first timestep of a linear schedule.
        last_beta: beta of its last timestep.
        conditional: give the network the image's class as a third input; the class after the last one stands for none.
        label_dropout: the share of images, drawn one by one, whose class is withheld, for classifier-free guidance.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    timesteps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02
    prediction: Prediction = "epsilon"
    conditional: bool = False
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ConfigError(f"diffusion.label_dropout={self.label_dropout}: must lie between 0 and 1")

    def make_schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return NoiseSchedule(self.schedule, self.timesteps, self.first_beta, self.last_beta)


@dataclass(frozen=True)
class SamplingConfig:
    """The grids of images that are drawn at each validation and at the end, always from the same noise.

    Attributes:
        images: how many; 0 draws none.
        guidance: weight of classifier-free guidance, for conditional networks.
    """

    images: int = 64
    sampler: Literal["ddpm", "ddim"] = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 0 or self.steps < 1:
            raise ConfigError(f"sampling: images={self.images} must be 0 or more, steps={self.steps} 1 or more")


@dataclass(frozen=True)
class DenoiserRecipe(RecipeConfig):
    """How a denoiser is optimised: Adam without decay, a warm-up, clipped gradients, averaged weights."""

    clip_norm: float | None = 1.0
    ema: float | None = 0.9999
    optimizer: OptimizerConfig = ADAM
    schedule: ScheduleConfig = WARM_UP


@dataclass(frozen=True)
class DenoiserTeacher(TeacherConfig):
    """A denoiser that teaches."""

    model: str = "redistill:ddpm_unet"
    recipe: DenoiserRecipe | None = None


@dataclass(frozen=True)
class DenoiserConfig(ExperimentConfig):
    """A whole denoiser experiment."""

    trainer: Literal["denoiser"] = "denoiser"
    data: DataConfig = CIFAR10
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    teacher: DenoiserTeacher = DenoiserTeacher()
    teachers: Mapping[str, DenoiserTeacher] = field(default_factory=dict)
    recipe: DenoiserRecipe = DenoiserRecipe()

    def __post_init__(self) -> None:
        if set(self.data.mean) | set(self.data.std) != {0.5}:
            raise ConfigError("data: a denoiser's images lie in [-1, 1]; leave data.mean and data.std at [0.5]")
