"""Distil a classifier into its memory-bounded student.

    redistill train                                  # minutes on a CPU, nothing to download
    accelerate launch -m redistill.trainers.classifier --config stl10/mobilenetv2.yaml --set data.root=/data
    redistill train --config my.yaml --set distillation.methods=kd+reentry --set student.budget=8x
    redistill train --config digits/int8.yaml        # and its int8 student, trained rounded
    redistill train --list

One YAML file is one experiment: data, teacher, student, distillation, recipe, run. A run's folder holds the resolved
configuration, a log, curves, checkpoints, the best weights and the finished student; --resume continues it.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import, so that Ctrl-C ends in one line there too
    import sys

    from redistill.__main__ import main as redistill

    sys.exit(redistill(["train", *sys.argv[1:]]))

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill.config.files import packaged
from redistill.config.settings import ClassifierConfig
from redistill.data.answers import label_by
from redistill.errors import ConfigError, DataError, ModelError
from redistill.internal.reasons import reason
from redistill.internal.text import format_shape
from redistill.trainers.acceleration import processes
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.command import Command
from redistill.trainers.costs import measure_costs
from redistill.trainers.experiment import Experiment, Row
from redistill.trainers.int8 import check_float_modules, check_int8, quantize_student, render_int8
from redistill.trainers.loop import Loop
from redistill.trainers.running import is_trained, run


class ClassifierExperiment(Experiment[ClassifierConfig]):
    """An experiment with a network that names classes."""

    def inputs(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The images themselves, [B, C, H, W]."""
        return (torch.stack([item["inputs"] for item in self.data.calibration.__getitems__(indices)]),)

    def ask(self, teacher: nn.Module) -> None:
        """Take the teacher's answers as labels where the pictures have none: top-1 is then agreement with it."""
        if self.data.labelled:
            return
        device = processes().device
        teacher.to(device).eval()
        with torch.no_grad():
            self.data = label_by(self.data, lambda images: teacher(images.to(device)))
        teacher.cpu()

    def make_task(self, network: nn.Module) -> ClassifierTask:
        """Cross-entropy, and distillation where there are teachers."""
        return ClassifierTask(network, self.data, self.config.targets, self.config.distillation)

    def check(self, model: nn.Module, name: str) -> None:
        """Refuse a model that does not predict as many classes as the data set has."""
        inputs = self.inputs(range(2))
        try:
            with torch.inference_mode():
                output = model(*inputs)
        except Exception as error:
            raise ModelError(
                f"{name} does not run on images of {format_shape(inputs[0].shape[1:])} ({reason(error)}); write the "
                "spec for them, or set data.channels and data.image_size"
            ) from error
        expected = (2, self.data.classes)
        if isinstance(output, Tensor) and output.dim() == len(expected) and not self.data.labelled:
            return
        if not isinstance(output, Tensor) or output.shape != expected:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"{name} gives {shape} for two images, and the data set has {self.data.classes} classes; "
                f"write the spec with ?num_classes={self.data.classes}"
            )

    def check_settings(self) -> None:
        """Refuse an int8 stage that could not be carried out, and classes that there are none of, too."""
        super().check_settings()
        check_int8(self.config)
        self._check_classes()

    def _check_classes(self) -> None:
        config, classes = self.config, self.data.classes
        if classes == 1:
            raise DataError(
                f"{config.data.root} has one class; a classifier needs two or more, or pictures without class folders "
                "and distillation.task=0"
            )
        untrained = config.teacher.weights is None if config.teacher.recipe else not is_trained(config.teacher)
        if not self.data.labelled and (config.distillation.task > 0 or untrained):
            raise ConfigError(
                f"{config.data.root} has no class folders in train and test, hence no labels; set distillation.task=0 "
                "and give a trained teacher.weights, whose outputs are then the target"
            )

    def check_student(self, student: nn.Module) -> None:
        """Refuse modules to be left in floating point that the student does not have."""
        check_float_modules(self.config, student)

    def follow_up(self, loop: Loop, student: nn.Module, teacher: nn.Module) -> dict[str, Any]:
        """What the student costs; the int8 stage, where one is asked for."""
        costs = {"costs": measure_costs(student, self.inputs([0]), self.config.student.convention)}
        if self.config.quantization.mode == "none":
            return costs
        return {**costs, "int8": quantize_student(self.config, loop, student, teacher, self.folder)}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Top-1, or agreement with the teacher."""
        return f"{self._measured} {metrics['top1']:.2f} %"

    @property
    def _measured(self) -> str:
        return "top-1" if self.data.labelled else "agreement with the teacher's top-1"

    def rows(self, summary: Mapping[str, Any]) -> list[Row]:
        """Accuracies and loss of the teacher and of the student's last and best weights."""
        name = "top-1" if self.data.labelled else "agreement"
        rows: list[Row] = [("weights", f"validation {name}", f"test {name}", "test top-5", "test loss")]
        for name in sorted({"teacher", "last", "best"} & summary.keys(), reverse=True):
            validation, test = summary[name]["validation"], summary[name]["test"]
            figures = (validation["top1"], test["top1"], test["top5"])
            rows.append((name, *(f"{value:.2f} %" for value in figures), f"{test['loss']:.4f}"))
        return rows

    def remarks(self, summary: Mapping[str, Any]) -> list[str]:
        """What int8 costs, where there is an int8 student."""
        return ["", render_int8(summary)] if "int8" in summary else []


def train(config: ClassifierConfig, folder: Path, *, resume: bool = False, trust: bool = False) -> dict[str, Any]:
    """Run an experiment into a folder and return its summary, which is saved there too.

    With ``trust``, models that the configuration names as ``package.module:function`` are imported.

    Raises:
        RedistillError: whatever a user can set right; the message is one line with the remedy.
    """
    return run(ClassifierExperiment(config, folder, trust=trust), resume=resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    comparisons = f"for redistill compare: {', '.join(packaged('comparison'))}"
    command = Command("classifier", __doc__, "digits/smoke.yaml", ClassifierConfig, ClassifierExperiment, comparisons)
    return command.main(arguments)
