"""Diffusion: noise schedules, what a denoiser predicts, and how images are sampled with it."""

from redistill.diffusion.external import sample_with_scheduler, scheduler_options
from redistill.diffusion.prediction import Prediction, to_noise, to_sample, training_target
from redistill.diffusion.sampling import sample
from redistill.diffusion.schedule import NoiseSchedule

__all__ = [
    "NoiseSchedule",
    "Prediction",
    "sample",
    "sample_with_scheduler",
    "scheduler_options",
    "to_noise",
    "to_sample",
    "training_target",
]
