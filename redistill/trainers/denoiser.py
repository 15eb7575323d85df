"""Distil a denoiser of diffusion into its memory-bounded student, or train one.

    redistill train-denoiser                                    # minutes on a CPU, nothing to download
    accelerate launch -m redistill.trainers.denoiser --config cifar10/ddpm.yaml --set data.root=/data
    accelerate launch -m redistill.trainers.denoiser --config cifar10/ddpm_teacher.yaml --set data.root=/data
    redistill train-denoiser --config my.yaml --set distillation.methods=mse --set student.budget=8x
    redistill train-denoiser --list

One YAML file is one experiment: data, diffusion, teacher, student, distillation, recipe, sampling, run. A teacher
without weights is trained first, by its recipe; to train one alone, set student.budget=null. A run's folder holds the
resolved configuration, a log, curves, grids of samples, checkpoints, the best weights and the finished student;
--resume continues it.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import, so that Ctrl-C ends in one line there too
    import sys

    from redistill.__main__ import main as redistill

    sys.exit(redistill(["train-denoiser", *sys.argv[1:]]))

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill.config.denoiser import DenoiserConfig
from redistill.errors import ModelError
from redistill.internal.reasons import reason
from redistill.internal.text import format_shape
from redistill.trainers.command import Command
from redistill.trainers.denoising import CLASS_METHODS, DenoiserTask, draw_by_index
from redistill.trainers.experiment import Experiment, Row
from redistill.trainers.running import run


class DenoiserExperiment(Experiment[DenoiserConfig]):
    """An experiment with a network that predicts the noise in images."""

    def inputs(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Noisy images [B, C, H, W], timesteps [B], and classes [B] for a conditional network."""
        items = self.data.calibration.__getitems__(indices)
        images = torch.stack([item["inputs"] for item in items])
        schedule = self.config.diffusion.make_schedule()
        noise, timestep = draw_by_index(images, torch.tensor(list(indices)), schedule.steps)
        noisy = schedule.add_noise(images, noise, timestep)
        labels = torch.tensor([item["labels"] for item in items])
        return (noisy, timestep, labels) if self.config.diffusion.conditional else (noisy, timestep)

    def make_task(self, network: nn.Module) -> DenoiserTask:
        """The error of the prediction, and distillation where there are teachers."""
        config = self.config
        return DenoiserTask(network, self.data, config.diffusion, config.sampling, config.distillation)

    def check(self, model: nn.Module, name: str) -> None:
        """Refuse a model that does not take these images and timesteps, or predicts another shape."""
        inputs = self.inputs(range(2))
        images = f"images of {format_shape(inputs[0].shape[1:])}"
        if self.config.diffusion.conditional:
            inputs = (*inputs[:2], torch.tensor([0, self.data.classes]))  # the null class too
        try:
            with torch.inference_mode():
                output = model(*inputs)
        except Exception as error:
            raise ModelError(f"{name} does not run on {images} ({reason(error)}); {self._remedy()}") from error
        if not isinstance(output, Tensor) or output.shape != inputs[0].shape:
            got = format_shape(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"{name} gives {got} for {images}; {self._remedy()}")

    def describe(self, metrics: Mapping[str, float]) -> str:
        """The mean squared error."""
        return f"mse {metrics['mse']:.5f}"

    def rows(self, summary: Mapping[str, Any]) -> list[Row]:
        """Mean squared errors of the teacher and of the student's last and best weights."""
        rows: list[Row] = [("weights", "validation mse", "test mse")]
        for name in sorted({"teacher", "last", "best"} & summary.keys(), reverse=True):
            rows.append((name, *(f"{summary[name][part]['mse']:.5f}" for part in ("validation", "test"))))
        return rows

    def _remedy(self) -> str:
        data = self.config.data
        classes = f", num_classes={self.data.classes}" if self.config.diffusion.conditional else ""
        return (
            "it must take images and timesteps and return the images' shape: write the spec for "
            f"{data.channels} channels{classes} and set data.image_size to a side that its levels can halve; "
            "classifiers are for `redistill train`"
        )


def train(config: DenoiserConfig, folder: Path, *, resume: bool = False, trust: bool = False) -> dict[str, Any]:
    """Run an experiment into a folder and return its summary, which is saved there too.

    With ``trust``, models that the configuration names as ``package.module:function`` are imported.

    Raises:
        RedistillError: whatever a user can set right; the message is one line with the remedy.
    """
    return run(DenoiserExperiment(config, folder, trust=trust), resume=resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    smoke = "digits/ddpm_smoke.yaml"
    command = Command(
        "denoiser", __doc__, smoke, DenoiserConfig, DenoiserExperiment, without=CLASS_METHODS, word="train-denoiser"
    )
    return command.main(arguments)
