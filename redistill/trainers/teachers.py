"""Teachers: loaded from a file, or trained here first, by the same loop and without a method."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from redistill.errors import ModelError
from redistill.models import load_model
from redistill.trainers import seeding
from redistill.trainers.acceleration import processes
from redistill.trainers.checkpoint import write_atomically
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.data import DataSets
from redistill.trainers.distillation import MAIN
from redistill.trainers.loop import Loop
from redistill.trainers.settings import ClassifierConfig, RecipeConfig, TeacherConfig

WEIGHTS = "weights.safetensors"

logger = logging.getLogger(__name__)


def obtain_teachers(config: ClassifierConfig, data: DataSets, folder: Path) -> dict[str, nn.Module]:
    """The main teacher and all others, by name; each is kept in a folder of its name unless it has a file."""
    wanted = {MAIN: config.teacher, **config.teachers}
    return {name: obtain_teacher(config, teacher, data, folder / name) for name, teacher in wanted.items()}


def obtain_teacher(config: ClassifierConfig, teacher: TeacherConfig, data: DataSets, folder: Path) -> nn.Module:
    """A teacher with its weights; trains it first where they are missing and there is a recipe.

    The weights are written to the teacher's `weights`, or into the folder; a teacher whose training was stopped
    continues where it was.
    """
    path = Path(teacher.weights).expanduser() if teacher.weights is not None else folder / WEIGHTS
    source = teacher.weights if teacher.weights in ("pretrained", "random") else path
    if teacher.recipe is not None and source == path and not path.is_file():
        train_teacher(config, teacher.model, teacher.recipe, data, folder, path)
    elif teacher.recipe is None and teacher.weights is None:
        return checked(load_model(teacher.model), teacher.model, data)
    return checked(load_model(teacher.model, source), teacher.model, data)


def train_teacher(
    config: ClassifierConfig, spec: str, recipe: RecipeConfig, data: DataSets, folder: Path, path: Path
) -> None:
    """Train a teacher from scratch by its recipe, and write its weights."""
    with seeding.seeded(config.run.seed, "teacher", spec):
        model = checked(load_model(spec, "random"), spec, data)
    logger.info("training the teacher %s for %d epochs into %s", spec, recipe.epochs, path)
    loop = Loop(ClassifierTask(model, data, config.targets), recipe, config.run, folder, config.data.workers)
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
