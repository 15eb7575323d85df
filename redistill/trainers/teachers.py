"""Teachers: loaded from a file, or trained here first, by the same loop and without a method."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from redistill.errors import ConfigError, ModelError
from redistill.models import load_model
from redistill.trainers import seeding
from redistill.trainers.acceleration import processes
from redistill.trainers.checkpoint import write_atomically
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.data import DataSets
from redistill.trainers.loop import Loop
from redistill.trainers.settings import ClassifierConfig

WEIGHTS = "weights.safetensors"

logger = logging.getLogger(__name__)


def obtain_teacher(config: ClassifierConfig, data: DataSets, folder: Path) -> nn.Module:
    """The teacher with its weights; trains it first where they are missing and there is a recipe.

    The weights are written to `teacher.weights`, or into the run's folder; a teacher whose training was stopped
    continues where it was.
    """
    teacher, path = config.teacher, weights_path(config, folder)
    source = teacher.weights if teacher.weights == "pretrained" else path
    if teacher.recipe is not None and source == path and not path.is_file():
        train_teacher(config, data, folder, path)
    elif teacher.recipe is None and teacher.weights is None:
        return checked(load_model(teacher.model), teacher.model, data)
    return checked(load_model(teacher.model, source), teacher.model, data)


def weights_path(config: ClassifierConfig, folder: Path) -> Path:
    """Where the teacher's weights are or will be."""
    given = config.teacher.weights
    return Path(given).expanduser() if given is not None else folder / "teacher" / WEIGHTS


def train_teacher(config: ClassifierConfig, data: DataSets, folder: Path, path: Path) -> None:
    """Train the teacher from scratch by its recipe, and write its weights."""
    recipe = config.teacher.recipe
    if recipe is None:
        raise ConfigError(f"teacher.weights: there is no file {path}, and no teacher.recipe to train it by")
    with seeding.seeded(config.run.seed, "teacher"):
        model = checked(load_model(config.teacher.model, "random"), config.teacher.model, data)
    logger.info("training the teacher %s for %d epochs into %s", config.teacher.model, recipe.epochs, path)
    place = folder / "teacher"
    loop = Loop(ClassifierTask(model, data, config.targets), recipe, config.run, place, config.data.workers)
    outcome = loop.run(resume=bool(loop.checkpoints.all()))
    logger.info("teacher: top-1 %.2f %% on the test set", outcome.test["top1"])
    if processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        write_atomically(path, save(state))
    processes().wait_for_everyone()


def checked(model: nn.Module, name: str, data: DataSets) -> nn.Module:
    """The model, if it predicts as many classes as the data set has."""
    model.eval()
    example = torch.stack([data.calibration[index]["inputs"] for index in range(2)])
    with torch.inference_mode():
        output = model(example)
    if not isinstance(output, torch.Tensor) or output.shape != (2, data.classes):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"teacher.model={name} gives {shape} for two images, and the data set has {data.classes} classes; "
            f"write the spec with ?num_classes={data.classes}"
        )
    return model
