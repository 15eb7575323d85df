"""The denoiser's task: the error of its prediction, and distillation, on the same noisy images as its teachers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.config.denoiser import DiffusionConfig, SamplingConfig
from redistill.config.settings import DistillationConfig
from redistill.data.datasets import DataSets
from redistill.diffusion import sample, training_target
from redistill.distillation import Distillation, Losses, Targets
from redistill.errors import ConfigError
from redistill.internal import seeding
from redistill.trainers.task import Batch, Task

CLASS_METHODS = frozenset({"kd", "dkd", "mlld"})
"""Methods that compare class probabilities."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread evenly however many there are."""


class DenoiserTask(Task):
    """A network that predicts the noise in images (Ho et al. 2020, Algorithm 1), and a teacher's answers to the same.

    The noise and timesteps of a step are drawn from torch's generator, which the loop seeds for each step; those of an
    image that is measured are a function of its index, so that measurements can be compared.

    Args:
        network, data, config: as :class:`Task` takes them.
        diffusion: the noise, and what is predicted.
        sampling: the images that are drawn to be looked at.
    """

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        network: nn.Module,
        data: DataSets,
        diffusion: DiffusionConfig,
        sampling: SamplingConfig,
        config: DistillationConfig | None = None,
    ) -> None:
        super().__init__(network, data, config)
        self.diffusion, self.sampling, self.classes = diffusion, sampling, data.classes
        self.schedule = diffusion.make_schedule()
        check_methods(self.distillation)

    def forward(self, batch: Batch, epoch: float = 0.0, first_stage: bool = False) -> Losses:
        """The weighted mean squared error ("task") and distillation losses of a batch."""
        images = self.laid_out(batch["inputs"])
        noise = torch.randn_like(images)
        timestep = torch.randint(self.schedule.steps, (len(images),), device=images.device)
        inputs, target = self._ask(images, noise, timestep, self._withheld(batch["labels"]))

        def squared_error(predicted: Tensor) -> Tensor:
            return F.mse_loss(predicted.float(), target)

        targets = Targets(labels=batch["labels"], indices=batch["indices"])
        return self.learn(inputs, targets, squared_error, epoch, first_stage)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error of each image's prediction, at a noise and timestep of its own."""
        images, indices = self.laid_out(batch["inputs"]), batch["indices"]
        noise, timestep = draw_by_index(images, indices, self.schedule.steps)
        inputs, target = self._ask(images, noise, timestep, batch["labels"])
        predicted: Tensor = self.network(*inputs)
        return {"mse": (predicted.float() - target).square().flatten(1).mean(dim=1)}

    def picture(self) -> Tensor | None:
        """Images [N, C, H, W] in [0, 1] sampled from the same noise at each call, class by class if there are any."""
        count, options, diffusion = self.sampling.images, self.sampling, self.diffusion
        if not count:
            return None
        shape = self.train_set[0]["inputs"].shape
        device = next(self.network.parameters()).device
        generator = seeding.generator("samples")
        images = sample(
            self.network,
            self.schedule,
            torch.randn(count, *shape, generator=generator).to(device),
            sampler=options.sampler,
            steps=min(options.steps, self.schedule.steps),
            prediction=diffusion.prediction,
            labels=torch.arange(count, device=device) % self.classes if diffusion.conditional else None,
            guidance=options.guidance if diffusion.conditional else 0.0,
            null_label=self.classes,
            eta=options.eta,
            generator=generator,
        )
        return (images.float().clamp(-1, 1) + 1) / 2

    def _ask(
        self, images: Tensor, noise: Tensor, timestep: Tensor, labels: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the networks are called with, and what the prediction should be."""
        scales = self.schedule.scales(timestep, images)
        noisy = scales[0] * images + scales[1] * noise
        target = training_target(self.diffusion.prediction, images, noise, scales)
        return (noisy, timestep, labels) if self.diffusion.conditional else (noisy, timestep), target

    def _withheld(self, labels: Tensor) -> Tensor:
        """Labels [B] with the null class in place of some, each image by its own draw."""
        if not self.diffusion.conditional:
            return labels
        dropped = torch.rand(len(labels), device=labels.device) < self.diffusion.label_dropout
        return labels.masked_fill(dropped, self.classes)


def draw_by_index(images: Tensor, indices: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Noise like ``images`` and timesteps [B] below ``steps``, a function of each image's index alone."""
    shape = images.shape[1:]
    drawn = [torch.randn(shape, generator=seeding.generator("noise", int(index))) for index in indices]
    timestep = (indices.double() * GOLDEN % 1 * steps).long()
    return torch.stack(drawn).to(images), timestep.to(images.device)


def check_methods(distillation: Distillation) -> None:
    """Refuse methods that compare class probabilities, which a denoiser has none of."""
    for part in distillation.parts:
        if part.method.name in CLASS_METHODS:
            raise ConfigError(
                f"distillation: {part.label} compares class probabilities and a denoiser predicts noise; use mse"
            )
