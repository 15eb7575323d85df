"""From noise to images: ancestral sampling (DDPM) and its deterministic kin (DDIM), over all timesteps or a few.

Each step estimates the image x_0, clips it to [-1, 1], and goes on from timestep t to the one before it in the list;
after the last there is no noise left. The initial noise is given in: two networks can be compared from the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill.diffusion.guidance import Denoiser, GuidedDenoiser
from redistill.diffusion.prediction import Prediction, check_prediction, to_noise, to_sample
from redistill.diffusion.schedule import NoiseSchedule
from redistill.errors import ConfigError

Sampler = Literal["ddpm", "ddim"]
Variance = Literal["large", "small"]
Spacing = Literal["linspace", "leading", "trailing"]


@dataclass(frozen=True)
class Noise:
    """Alpha-bar at the timestep where a step starts and where it ends; 1 is an image without noise."""

    now: float
    then: float

    @property
    def beta(self) -> float:
        """Variance that the forward process adds on the way from there to here, 1 - now / then."""
        return 1 - self.now / self.then

    @property
    def posterior(self) -> float:
        """Variance of q(x_then | x_now, x_0) (Ho et al., equation 7), named "small"."""
        return (1 - self.then) / (1 - self.now) * self.beta


Step = Callable[[Tensor, Tensor, Noise], tuple[Tensor, float]]
"""From x_t and the estimate of x_0 to the mean of the next image and the standard deviation of its noise."""


@torch.no_grad()
def sample(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    *,
    sampler: Sampler = "ddim",
    steps: int = 50,
    prediction: Prediction = "epsilon",
    labels: Tensor | None = None,
    guidance: float = 0.0,
    null_label: int | None = None,
    eta: float = 0.0,
    variance: Variance = "large",
    spacing: Spacing = "linspace",
    clip: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Turn noise [N, C, H, W] into images [N, C, H, W] in [-1, 1].

    Args:
        model: a denoiser, called as model(x, t) or model(x, t, labels) and put in eval mode meanwhile.
        schedule: the noise schedule that the model was trained with.
        noise: unit normal noise; the images are a function of it where no step draws more.
        sampler: ``ddpm`` draws noise at each step, ``ddim`` only as much as ``eta`` says.
        steps: timesteps that are visited, at most the schedule's.
        prediction: what the model predicts.
        labels: class indices [N], for a conditional model.
        guidance: weight of classifier-free guidance; 0 is none.
        null_label: the label that stands for no label; without it the model is called without labels instead.
        eta: for ``ddim``, 0 is deterministic and 1 draws the noise of ``ddpm`` with the small variance.
        variance: for ``ddpm``, beta ("large") or the posterior's ("small") (Ho et al., section 3.2).
        spacing: which timesteps: ``linspace`` holds both ends, ``leading`` the first, ``trailing`` the last.
        clip: keep the estimate of the image in [-1, 1], before anything is computed from it.
        generator: source of the steps' noise, on any device.
        progress: show a progress bar.

    Raises:
        ConfigError: an unknown name or a number out of range.
        ModelError: a model that does not return the image's shape.
    """
    check_prediction(prediction)
    step = _make_step(sampler, eta, variance)
    timesteps = choose_timesteps(schedule.steps, steps, spacing)
    denoiser = GuidedDenoiser(model, labels, guidance, null_label)
    images = noise
    with evaluating(model):
        pairs = zip(timesteps, [*timesteps[1:], -1], strict=True)
        for now, then in tqdm(pairs, total=steps, desc="sampling", disable=not progress, leave=False):
            level = Noise(schedule.alpha_bar(now), schedule.alpha_bar(then))
            scales = (math.sqrt(level.now), math.sqrt(1 - level.now))
            estimate = to_sample(prediction, denoiser(images, now), images, scales)
            mean, deviation = step(images, estimate.clamp(-1, 1) if clip else estimate, level)
            images = mean + deviation * draw_like(mean, generator) if deviation and then >= 0 else mean
    return images


def ancestral_step(noisy: Tensor, estimate: Tensor, noise: Noise, variance: Variance) -> tuple[Tensor, float]:
    """The mean of q(x_then | x_now, x_0) (Ho et al., equation 7) and the deviation of Algorithm 2."""
    image_weight = math.sqrt(noise.then) * noise.beta / (1 - noise.now)
    noisy_weight = math.sqrt(1 - noise.beta) * (1 - noise.then) / (1 - noise.now)
    deviation = math.sqrt(noise.beta if variance == "large" else noise.posterior)
    return image_weight * estimate + noisy_weight * noisy, deviation


def implicit_step(noisy: Tensor, estimate: Tensor, noise: Noise, eta: float) -> tuple[Tensor, float]:
    """The step of Song, Meng and Ermon (2021, arXiv 2010.02502), equation 12, with the deviation of equation 16.

    Its noise is what the clipped estimate leaves of x_t, so that eta = 1 is the ancestral step with small variance.
    """
    deviation = eta * math.sqrt(noise.posterior)
    direction = to_noise("sample", estimate, noisy, (math.sqrt(noise.now), math.sqrt(1 - noise.now)))
    return math.sqrt(noise.then) * estimate + math.sqrt(max(0.0, 1 - noise.then - deviation**2)) * direction, deviation


def choose_timesteps(total: int, steps: int, spacing: Spacing = "linspace") -> list[int]:
    """``steps`` of ``total`` timesteps, from the noisiest down.

    Raises:
        ConfigError: more steps than there are, none, or an unknown spacing.
    """
    if not 1 <= steps <= total:
        raise ConfigError(f"sampling with steps={steps}: give 1 to {total}, the timesteps of the noise schedule")
    if spacing == "linspace":
        chosen = torch.linspace(total - 1, 0, steps, dtype=torch.float64)
    elif spacing == "leading":
        chosen = torch.arange(steps - 1, -1, -1) * (total // steps)
    elif spacing == "trailing":
        chosen = total - torch.arange(steps, dtype=torch.float64) * (total / steps) - 1
    else:
        raise ConfigError(f"spacing {spacing!r} is not one of linspace, leading, trailing")
    return [int(timestep) for timestep in chosen.round().tolist()]


def draw_like(value: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit normal noise of a tensor's shape, drawn where the generator lives."""
    device = value.device if generator is None else generator.device
    return torch.randn(value.shape, generator=generator, device=device, dtype=value.dtype).to(value.device)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a module in eval mode for a while: no dropout, and batch norms with their own statistics."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _make_step(sampler: Sampler, eta: float, variance: Variance) -> Step:
    if sampler == "ddim":
        if not 0 <= eta <= 1:
            raise ConfigError(f"ddim with eta={eta}: it must lie between 0 and 1")
        return lambda noisy, estimate, noise: implicit_step(noisy, estimate, noise, eta)
    if sampler != "ddpm":
        raise ConfigError(f"sampler {sampler!r} is not one of ddpm, ddim")
    if variance not in ("large", "small"):
        raise ConfigError(f"variance {variance!r} is not one of large, small")
    return lambda noisy, estimate, noise: ancestral_step(noisy, estimate, noise, variance)
