"""Teachers: loaded from a file, or trained here first, by the same loop and without a method."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from redistill.config.files import resolved
from redistill.config.recipes import RecipeConfig
from redistill.config.settings import TeacherConfig
from redistill.distillation import MAIN
from redistill.internal import seeding
from redistill.internal.places import check_makeable
from redistill.models.specs import parse_spec
from redistill.models.weights import choose_weights, split_key
from redistill.trainers.acceleration import processes
from redistill.trainers.checkpoint import save_weights
from redistill.trainers.experiment import Experiment
from redistill.trainers.folder import RunFolder
from redistill.trainers.loop import Loop
from redistill.trainers.progress import Facts
from redistill.trainers.students import settings_named

logger = logging.getLogger(__name__)


def obtain_teachers(experiment: Experiment[Any]) -> dict[str, nn.Module]:
    """The main teacher and all others, by name; each is kept in a folder of its name unless it has a file."""
    wanted = {MAIN: experiment.config.teacher, **experiment.config.teachers}
    places = {name: experiment.folder.teacher(name) for name in wanted}
    found = {name: obtain_teacher(experiment, teacher, places[name]) for name, teacher in wanted.items()}
    experiment.ask(found[MAIN])
    return found


def check_teachers(experiment: Experiment[Any]) -> None:
    """Refuse, before any teacher is trained, weights that are nowhere, or cannot be written.

    Raises:
        ConfigError: naming the setting.
    """
    for name, teacher in {MAIN: experiment.config.teacher, **experiment.config.teachers}.items():
        with settings_named(name if name == MAIN else f"teachers.{name}"):
            spec = parse_spec(teacher.model)
            if teacher.recipe is None:
                choose_weights(spec, teacher.weights)
                continue
            if teacher.start is not None:
                choose_weights(spec, teacher.start)
            path = split_key(teacher.weights)[0] if teacher.weights not in (None, "pretrained", "random") else None
            if path is not None and path.exists():
                choose_weights(spec, path)
            elif path is not None:
                check_makeable(str(path))


def is_to_be_trained(experiment: Experiment[Any]) -> bool:
    """Whether some teacher has a recipe and no weights yet."""
    wanted = {MAIN: experiment.config.teacher, **experiment.config.teachers}
    places = (_trained_place(teacher, experiment.folder.teacher(name)) for name, teacher in wanted.items())
    return any(place is not None and not place.is_file() for place in places)


def _trained_place(teacher: TeacherConfig, folder: RunFolder) -> Path | None:
    """Where the weights of a teacher that is trained here lie, None of one that is not."""
    if teacher.recipe is None or teacher.weights in ("pretrained", "random"):
        return None
    return split_key(teacher.weights)[0] if teacher.weights is not None else folder.trained_weights


def obtain_teacher(experiment: Experiment[Any], teacher: TeacherConfig, folder: RunFolder) -> nn.Module:
    """A teacher with its weights; trains it first where they are missing and there is a recipe.

    The weights are written to the teacher's `weights`, or into the folder; a teacher whose training was stopped
    continues where it was.
    """
    recipe, weights, path = teacher.recipe, teacher.weights, _trained_place(teacher, folder)
    if recipe is None or path is None:
        return _load(experiment, teacher.model, weights)
    if not path.is_file():
        if teacher.augmentation is not None:
            experiment = experiment.augmented(teacher.augmentation)
        train_teacher(experiment, teacher, recipe, folder, path)
    return _load(experiment, teacher.model, weights or path)


def train_teacher(
    experiment: Experiment[Any], teacher: TeacherConfig, recipe: RecipeConfig, folder: RunFolder, path: Path
) -> None:
    """Train a teacher by its recipe, from scratch or from its `start`, and write its weights."""
    config, spec = experiment.config, teacher.model
    model = _load(experiment, spec, teacher.start or "random")
    logger.info("training the teacher %s into %s", spec, path)
    facts = Facts(resolved(config))
    loop = Loop(experiment.make_task(model), recipe, config.run, folder, config.data.workers, facts)
    outcome = loop.run(resume=bool(loop.checkpoints.all()))
    logger.info("teacher: test %s", experiment.describe(outcome.test))
    if processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, path)
    processes().wait_for_everyone()


def _load(experiment: Experiment[Any], spec: str, weights: str | Path | None) -> nn.Module:
    """A model that fits the data; where its weights are random, they are a function of the seed."""
    with seeding.seeded(experiment.config.run.seed, "teacher", spec):
        model = experiment.load_model(spec, weights)
        experiment.check(model.eval(), f"teacher.model={spec}")
    return model
