"""The whole evaluation: fidelity beside its floor, nearness to the teacher, the error by timestep, and all settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from redistill.config.checks import Count, Positive, Section
from redistill.config.denoiser import DiffusionConfig
from redistill.config.recipes import RecipeConfig
from redistill.config.settings import DataConfig
from redistill.studies.evaluation.features import RECIPE, expected_features, open_extractor
from redistill.studies.evaluation.fidelity import Fidelity, check_count, score
from redistill.studies.evaluation.generation import GenerationConfig, TrainedDenoiser, generate
from redistill.studies.evaluation.real_images import Split, held_out, open_real
from redistill.studies.evaluation.similarity import WINDOW, mse, ssim
from redistill.studies.evaluation.timesteps import TimestepError, error_by_timestep

IMAGES = 1000


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """What is scored against what.

    Attributes:
        data: the data set of the reference, as the denoiser saw it.
        diffusion: the noise that the denoiser was trained with, and what it predicts.
        images: how many are generated, or read from a folder; by default 1000, or all that are there.
        reference: the split that the reference is drawn from, of `reference_size` images (by default as many).
        extractor: a file, see :func:`redistill.studies.evaluation.features.open_extractor`.
        recipe: how a classifier is trained where there is no file.
        points: timesteps at which the predicted noise is measured, on `held_out` test images; 0 leaves that out.
    """

    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    images: Positive | None = None
    reference: Split = "train"
    reference_size: Positive | None = None
    extractor: str | None = None
    recipe: RecipeConfig = RECIPE
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    points: Count = 20
    held_out: Positive = 256


@dataclass(frozen=True)
class Judged:
    """What is known of one set of images, and of the network that made them.

    Attributes:
        description: which network, with which weights; or which folder.
        sampling: sampler, steps and seed; none of images that were there.
        fidelity: against the reference.
        ssim, mse: to the teacher's images from the same noise, means over all images; no SSIM of images that are
            smaller than its window.
        errors: the error of the predicted noise by timestep.
    """

    description: str
    sampling: str | None
    fidelity: Fidelity
    ssim: float | None = None
    mse: float | None = None
    errors: tuple[TimestepError, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Scores with all that they depend on.

    Attributes:
        judged: by name, the one in question first, the teacher after it.
        floor: real images against real ones; `floor_description` says which.
    """

    judged: dict[str, Judged]
    floor: Fidelity
    floor_description: str
    reference: str
    extractor: str
    extractor_digest: str


class Evaluator:
    """Judges images and denoisers by one configuration; what they share is computed once.

    Args:
        config: the configuration.
        images: how many there are to judge, where that is known.

    Raises:
        RedistillError: at once, before anything is trained or generated, what cannot be scored or would mislead.
    """

    def __init__(self, config: EvaluationConfig, images: int | None = None) -> None:
        self.config, self.images = config, images or config.images or IMAGES
        check_count(self.images, expected_features(config.extractor))
        self.real = open_real(config.data, config.reference, self.images, config.reference_size)
        self.extractor = open_extractor(config.extractor, config.data, config.recipe)

    @cached_property
    def floor(self) -> Fidelity:
        """Real images against real ones."""
        return score(*self.real.floor, self.extractor)

    @cached_property
    def held_out(self) -> Tensor:
        """Images on which the predicted noise is measured."""
        return held_out(self.config.data, self.config.held_out)

    def judge_images(self, pixels: Tensor, description: str) -> Judged:
        """The fidelity of uint8 images [N, C, H, W]."""
        return Judged(description, None, score(pixels, self.real.reference, self.extractor))

    def generate(self, denoiser: TrainedDenoiser, name: str = "sampling") -> Tensor:
        """A denoiser's images, uint8 [N, C, H, W]."""
        return generate(denoiser, self.images, self.config.generation, name)

    def judge(self, denoiser: TrainedDenoiser, pixels: Tensor, of_teacher: Tensor | None = None) -> Judged:
        """A denoiser by its images, and by the teacher's from the same noise where there is one."""
        points, large = self.config.points, min(pixels.shape[2:]) >= WINDOW
        return Judged(
            denoiser.description,
            str(self.config.generation),
            score(pixels, self.real.reference, self.extractor),
            ssim(pixels, of_teacher).mean().item() if of_teacher is not None and large else None,
            mse(pixels, of_teacher).mean().item() if of_teacher is not None else None,
            error_by_timestep(denoiser, self.held_out, points) if points else (),
        )

    def conclude(self, judged: dict[str, Judged]) -> Evaluation:
        """Put the scores beside the floor and what they depend on."""
        return Evaluation(
            judged,
            self.floor,
            self.real.floor_description,
            self.real.description,
            self.extractor.description,
            self.extractor.digest,
        )
