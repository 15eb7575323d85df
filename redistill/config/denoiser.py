"""What can be set of a denoiser's experiment. Defaults are the recipe of Ho et al. (2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from redistill.config.checks import AboveZero, Inside, NotNegative, Positive, Range, Section, Share, ShareBelowOne
from redistill.config.recipes import OptimizerConfig, RecipeConfig, ScheduleConfig
from redistill.config.settings import DataConfig, ExperimentConfig, TeacherConfig
from redistill.diffusion import NoiseSchedule, Prediction
from redistill.errors import ConfigError

Timesteps = Annotated[int, Range(2, 100_000)]
Images = Annotated[int, Range(0, 65_536)]

ADAM = OptimizerConfig(name="adamw", learning_rate=2e-4, weight_decay=0.0)
WARM_UP = ScheduleConfig(name="constant", warmup_steps=5000)
CIFAR10 = DataConfig(name="cifar10")


@dataclass(frozen=True)
class DiffusionConfig(Section):
    """The noise, and what a network is asked about it.

    Attributes:
        timesteps: how many there are.
        first_beta: beta of the first timestep of a linear schedule.
        last_beta: beta of its last timestep.
        conditional: give the network the image's class as a third input; the class after the last one stands for none.
        label_dropout: the share of images, drawn one by one, whose class is withheld, for classifier-free guidance.
    """

    place: ClassVar[str] = "diffusion"

    schedule: Literal["linear", "cosine"] = "linear"
    timesteps: Timesteps = 1000
    first_beta: Inside = 1e-4
    last_beta: Inside = 0.02
    prediction: Prediction = "epsilon"
    conditional: bool = False
    label_dropout: ShareBelowOne = 0.1

    def make_schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return NoiseSchedule(self.schedule, self.timesteps, self.first_beta, self.last_beta)


@dataclass(frozen=True)
class SamplingConfig(Section):
    """The grids of images that are drawn at each validation and at the end, always from the same noise.

    Attributes:
        images: how many; 0 draws none.
        guidance: weight of classifier-free guidance, for conditional networks.
    """

    place: ClassVar[str] = "sampling"

    images: Images = 64
    sampler: Literal["ddpm", "ddim"] = "ddim"
    steps: Positive = 50
    eta: Share = 0.0
    guidance: NotNegative = 0.0


@dataclass(frozen=True)
class DenoiserRecipe(RecipeConfig):
    """How a denoiser is optimised: Adam without decay, a warm-up, clipped gradients, averaged weights."""

    clip_norm: AboveZero | None = 1.0
    ema: Inside | None = 0.9999
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
        super().__post_init__()
        if set(self.data.mean) | set(self.data.std) != {0.5}:
            raise ConfigError("data: a denoiser's images lie in [-1, 1]; leave data.mean and data.std at [0.5]")
