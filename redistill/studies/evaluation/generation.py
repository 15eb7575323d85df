"""Images of a denoiser: a function of its weights, the sampler and the seed, whatever the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill.config.checks import NotNegative, Positive, Section
from redistill.diffusion import NoiseSchedule, Prediction, sample
from redistill.diffusion.sampling import Sampler
from redistill.internal import seeding
from redistill.studies.evaluation.real_images import to_pixels


@dataclass(frozen=True)
class GenerationConfig(Section):
    """How images are made.

    Attributes:
        steps: timesteps that are visited.
        guidance: weight of classifier-free guidance, of conditional denoisers.
        seed: of the initial noise; image number i starts from the same noise in every network.
        batch: images at once.
    """

    place: ClassVar[str] = "generation"

    sampler: Sampler = "ddim"
    steps: Positive = 50
    guidance: NotNegative = 0.0
    seed: int = 0
    batch: Positive = 64

    def __str__(self) -> str:
        guided = f", guidance {self.guidance:g}" if self.guidance else ""
        return f"{self.sampler.upper()}-{self.steps}{guided}, seed {self.seed}"


@dataclass(frozen=True)
class TrainedDenoiser:
    """A network that predicts noise, with what must be known to sample with it.

    Attributes:
        network: called as network(x, t), or network(x, t, labels) where there are `classes`.
        shape: of its images, (C, H, W).
        classes: of a conditional network; 0 of an unconditional one.
        description: which weights these are.
    """

    network: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    shape: tuple[int, int, int]
    description: str
    classes: int = 0


def generate(denoiser: TrainedDenoiser, count: int, config: GenerationConfig, name: str = "sampling") -> Tensor:
    """Images as uint8, [count, C, H, W]; a conditional network takes all classes in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = denoiser.network.to(device).eval()
    made = []
    with tqdm(total=count, desc=name, unit="image", leave=False, disable=None) as bar:
        for part in torch.split(torch.arange(count), config.batch):
            noise = torch.stack([initial_noise(denoiser.shape, config.seed, int(index)) for index in part])
            images = sample(
                network,
                denoiser.schedule,
                noise.to(device),
                sampler=config.sampler,
                steps=config.steps,
                prediction=denoiser.prediction,
                generator=seeding.generator(config.seed, "steps", int(part[0])),
                **_conditions(denoiser, part.to(device), config),
            )
            made.append(to_pixels(images).cpu())
            bar.update(len(part))
    return torch.cat(made)


def initial_noise(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    """The noise that image number `index` starts from."""
    return torch.randn(shape, generator=seeding.generator(seed, "noise", index))


def _conditions(denoiser: TrainedDenoiser, indices: Tensor, config: GenerationConfig) -> dict[str, Any]:
    if not denoiser.classes:
        return {}
    return {"labels": indices % denoiser.classes, "guidance": config.guidance, "null_label": denoiser.classes}
