"""The error of the predicted noise by timestep: where along the way from noise to image a denoiser is good."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from redistill.diffusion import to_noise
from redistill.internal import seeding
from redistill.internal.files import write_atomically
from redistill.studies.evaluation.generation import TrainedDenoiser

BATCH = 64


@dataclass(frozen=True)
class TimestepError:
    """Mean squared error of the noise at a timestep, over images and pixels; 1 is what predicting nothing gives."""

    timestep: int
    error: float


@torch.no_grad()
def error_by_timestep(
    denoiser: TrainedDenoiser, images: Tensor, points: int = 20, seed: int = 0
) -> tuple[TimestepError, ...]:
    """The error at `points` timesteps spread evenly over the schedule, both ends included.

    Args:
        denoiser: any kind of prediction is turned into noise first.
        images: held-out images in [-1, 1], [N, C, H, W].
        seed: of the noise, which is the same for every network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = denoiser.network.to(device).eval()
    last = denoiser.schedule.steps - 1
    chosen = sorted({round(place * last) for place in torch.linspace(0, 1, points).tolist()})
    errors = []
    for timestep in tqdm(chosen, desc="timesteps", leave=False, disable=None):
        noise = torch.randn(images.shape, generator=seeding.generator(seed, "timestep", timestep))
        parts = zip(torch.split(images, BATCH), torch.split(noise, BATCH), strict=True)
        found = [_errors(denoiser, network, x.to(device), e.to(device), timestep) for x, e in parts]
        errors.append(TimestepError(timestep, torch.cat(found).mean().item()))
    return tuple(errors)


def _errors(
    denoiser: TrainedDenoiser, network: torch.nn.Module, images: Tensor, noise: Tensor, timestep: int
) -> Tensor:
    """Of each image, [B]; a conditional network is asked without a label."""
    times = torch.full((len(images),), timestep, device=images.device)
    noisy = denoiser.schedule.add_noise(images, noise, times)
    labels = (torch.full_like(times, denoiser.classes),) if denoiser.classes else ()
    predicted = to_noise(
        denoiser.prediction, network(noisy, times, *labels), noisy, denoiser.schedule.scales(times, noisy)
    )
    return (predicted - noise).square().double().mean(dim=(1, 2, 3)).cpu()


def plot_errors(curves: Mapping[str, Sequence[TimestepError]], path: str | os.PathLike[str]) -> None:
    """Write a PNG with a curve for each name.

    Raises:
        RedistillError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, curve in curves.items():
        axis.semilogy([point.timestep for point in curve], [point.error for point in curve], marker=".", label=name)
    axis.set(xlabel="timestep (0: image, last: noise)", ylabel="squared error of the noise")
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    write_atomically(path, buffer.getvalue())
