"""Sampling by a scheduler of diffusers (DPM-Solver, Heun, ...) with any denoiser of ours, without a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from redistill.diffusion.guidance import Denoiser, GuidedDenoiser
from redistill.diffusion.sampling import evaluating
from redistill.diffusion.schedule import NoiseSchedule

NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@torch.no_grad()
def sample_with_scheduler(
    model: Denoiser,
    scheduler: Any,
    noise: Tensor,
    *,
    steps: int = 20,
    labels: Tensor | None = None,
    guidance: float = 0.0,
    null_label: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Turn unit noise [N, C, H, W] into images by a diffusers scheduler.

    Args:
        model: as in :func:`redistill.diffusion.sample`; it predicts what the scheduler is configured for.
        scheduler: an instance such as ``DPMSolverMultistepScheduler(**scheduler_options(schedule))``.
    """
    denoiser = GuidedDenoiser(model, labels, guidance, null_label)
    scheduler.set_timesteps(steps)
    images = noise * scheduler.init_noise_sigma
    with evaluating(model):
        for timestep in tqdm(scheduler.timesteps, desc="sampling", disable=not progress, leave=False):
            predicted = denoiser(scheduler.scale_model_input(images, timestep), int(timestep))
            images = scheduler.step(predicted, timestep, images, return_dict=False)[0]
    result: Tensor = images
    return result


def scheduler_options(schedule: NoiseSchedule) -> dict[str, Any]:
    """The arguments with which a diffusers scheduler has the noise of ours."""
    options: dict[str, Any] = {"num_train_timesteps": schedule.steps, "beta_schedule": NAMES[schedule.name]}
    if schedule.name == "linear":
        options |= {"beta_start": schedule.first_beta, "beta_end": schedule.last_beta}
    return options
