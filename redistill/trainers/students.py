"""Students: the teacher rewritten for a budget, a saved one, or the teacher's architecture as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import redistill
from redistill.compiler.request import Request
from redistill.config.files import find_file
from redistill.config.settings import DistillationConfig, StudentConfig
from redistill.distillation import MAIN, Distillation, Need
from redistill.errors import ConfigError, RedistillError
from redistill.internal import seeding
from redistill.internal.plugins import is_path
from redistill.internal.suggestions import suggest
from redistill.models.specs import parse_spec
from redistill.models.weights import choose_weights
from redistill.planning.objectives import FIDELITY, OBJECTIVES
from redistill.trainers.acceleration import processes
from redistill.trainers.baselines import LEVERS
from redistill.trainers.checkpoint import save_weights
from redistill.trainers.experiment import Experiment
from redistill.trainers.folder import RunFolder

logger = logging.getLogger(__name__)


def obtain_student(experiment: Experiment[Any], teacher: nn.Module) -> nn.Module:
    """The student, from the teacher's weights or from scratch; a plain copy of the teacher where nothing is asked."""
    config = experiment.config
    student = config.student
    example = experiment.inputs([0])
    with seeding.seeded(config.run.seed, "student"):
        spec = student.model or config.teacher.model
        inherits = student.start != "scratch" and student.model is None
        origin = teacher if inherits else experiment.load_model(spec, student.weights or "random")
        made = _make(experiment, student, spec, origin, example)
    if student.folder is not None or student.objective == FIDELITY or keeps_grids(made, student):
        return made
    if student.start == "fitted" and isinstance(made, redistill.Student):
        fit_to_teacher(made, teacher, experiment, student.fit)
    elif student.recalibrate and (inherits or student.weights is not None):
        recalibrate(made, experiment, student.recalibrate, config.recipe.batch_size)
    return made


def check_student(experiment: Experiment[Any]) -> None:
    """Refuse, before a teacher is trained, a student that could not be made of what is asked for.

    Raises:
        RedistillError: naming the setting.
    """
    student = experiment.config.student
    check_taps(student, experiment.config.distillation)
    with settings_named("student"):
        if student.budget is not None or student.factors is not None:
            taps = _tap_file(student.taps)
            if student.objective not in OBJECTIVES and not is_path(student.objective):
                raise ConfigError(
                    f"student.objective: there is none {student.objective!r}{suggest(student.objective, OBJECTIVES)}"
                )
            Request.of(student.budget, student.factors, student.convention, student.objective, taps)
        if student.folder is not None and not Path(student.folder).is_dir():
            raise ConfigError(f"student.folder: there is no folder {student.folder}")
        if student.weights is not None:
            choose_weights(parse_spec(student.model or experiment.config.teacher.model), student.weights)
        if student.model is not None:
            with seeding.seeded("check"):
                experiment.load_model(student.model, "random")


def try_student(experiment: Experiment[Any]) -> None:
    """Make the student of untrained teachers, to learn before those are trained whether there is one, and a loss.

    Raises:
        RedistillError: no plan fits, a saved student is damaged or does not fit the data, or a method not the student.
    """
    config, example = experiment.config, experiment.inputs([0])
    compares = config.student.objective == FIDELITY
    student = replace(config.student, objective="macs") if compares else config.student
    with seeding.seeded("check"):
        models = {MAIN: config.teacher.model, **{name: teacher.model for name, teacher in config.teachers.items()}}
        teachers = {name: experiment.load_model(model, "random").eval() for name, model in models.items()}
        for name, teacher in teachers.items():
            experiment.check(teacher, f"teacher.model={models[name]}")
        spec = student.model or config.teacher.model
        made = _make(experiment, student, spec, experiment.load_model(spec, "random"), example).eval()
        experiment.check(made, "the student")
        experiment.make_distiller(made, teachers)


@contextmanager
def settings_named(section: str) -> Iterator[None]:
    """Say of which section of the configuration a refusal speaks."""
    try:
        yield
    except ConfigError:
        raise
    except RedistillError as error:
        raise ConfigError(f"{section}: {error}") from error


def keeps_grids(made: nn.Module, config: StudentConfig) -> bool:
    """Whether the student sees what its teacher sees, so that its statistics hold and there is nothing to fit."""
    if isinstance(made, redistill.Student):
        return set(made.record.plan.factors) == {1} and not made.record.taps
    return config.budget is None and config.factors is None


def check_taps(student: StudentConfig, distillation: DistillationConfig) -> None:
    """Refuse methods that read taps, as RED does, of a rewritten student that is asked for without any.

    Raises:
        ConfigError: naming method and remedy.
    """
    rewritten = student.folder is None and student.lever not in LEVERS and (student.budget or student.factors)
    reading = [part.label for part in Distillation(distillation.methods).parts if Need.TAPS in part.method.needs]
    if rewritten and reading and student.taps == "none":
        raise ConfigError(
            f"distillation.methods: {', '.join(reading)} needs taps and student.taps is none; set student.taps=auto, "
            "or leave it out"
        )


def _make(
    experiment: Experiment[Any], config: StudentConfig, spec: str, origin: nn.Module, example: tuple[Tensor, ...]
) -> nn.Module:
    if config.folder is not None:
        if not Path(config.folder).is_dir():
            raise ConfigError(f"student.folder: there is no folder {config.folder}")
        return redistill.load_student(config.folder, teacher=origin)
    if config.budget is None and config.factors is None:
        plain = experiment.load_model(spec, "random")
        plain.load_state_dict(origin.state_dict())
        return plain
    if config.lever in LEVERS:
        return LEVERS[config.lever](origin, example, config.budget or "4x", config.convention)
    return redistill.transform(
        origin,
        example,
        budget=config.budget or "4x",
        factors=config.factors,
        convention=config.convention,
        objective=config.objective,
        taps=_tap_file(config.taps),
        init=config.red_init,
        model=spec,
        levers=config.lever,
        calibration=_calibration(experiment, config),
    )


def _calibration(experiment: Experiment[Any], config: StudentConfig) -> tuple[Tensor, ...] | None:
    """Training images by which plans are compared, where the objective asks for some."""
    return experiment.inputs(_draw(experiment, "fit", config.fit).tolist()) if config.objective == FIDELITY else None


def _tap_file(taps: str) -> str:
    return taps if taps in ("auto", "none") else str(find_file(taps))


def fit_to_teacher(student: redistill.Student, teacher: nn.Module, experiment: Experiment[Any], images: int) -> None:
    """Fit the student's layers to the teacher's on training images without augmentation, drawn at random."""
    device = processes().device
    drawn = _draw(experiment, "fit", images)
    inputs = (value.to(device) for value in experiment.inputs(drawn.tolist()))
    report = redistill.fit(student.to(device), teacher.to(device), *inputs)
    student.cpu()
    teacher.cpu()
    logger.info("%s, on %d images", report, len(drawn))


@torch.no_grad()
def recalibrate(network: nn.Module, experiment: Experiment[Any], batches: int, batch_size: int) -> None:
    """Measure batch-norm statistics anew, as plain averages over training batches without augmentation.

    A student that pools elsewhere sees other statistics than its teacher.
    """
    device = processes().device
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    drawn = _draw(experiment, "recalibrate", batches * batch_size)
    with _cumulative(norms), _training(network, norms):
        for part in torch.split(drawn, batch_size):
            if len(part) > 1:
                network.to(device)(*(value.to(device) for value in experiment.inputs(part.tolist())))
    network.cpu()


def _draw(experiment: Experiment[Any], purpose: str, images: int) -> Tensor:
    """Indices of so many training images, at random, since data sets are often sorted by class."""
    return torch.randperm(len(experiment.data.calibration), generator=seeding.generator(purpose))[:images]


@contextmanager
def _cumulative(norms: list[Any]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _training(network: nn.Module, norms: list[Any]) -> Iterator[None]:
    """Only the norms in training mode: no dropout."""
    before = network.training
    network.eval()
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        network.train(before)


def deliver(network: nn.Module, folder: RunFolder) -> Path:
    """Save a student as a student's folder, any other network as its weights."""
    if isinstance(network, redistill.Student):
        return network.save(folder.student)
    folder.student.mkdir(parents=True, exist_ok=True)
    save_weights(network, folder.plain_weights)
    return folder.student
