"""Running an experiment, whatever its kind: teachers, student, training, and what is left in the folder."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import accelerate
import torch
import torchvision
from torch import nn

from redistill.config.files import differences, resolved
from redistill.config.settings import ExperimentConfig, TeacherConfig
from redistill.distillation import MAIN
from redistill.errors import CheckpointError
from redistill.internal.files import write_atomically
from redistill.internal.tables import render_table
from redistill.models.specs import parse_spec
from redistill.models.weights import choose_weights
from redistill.trainers.acceleration import prefers_channels_last, processes
from redistill.trainers.checkpoint import sole_writer
from redistill.trainers.experiment import Experiment
from redistill.trainers.folder import RunFolder
from redistill.trainers.loop import Loop
from redistill.trainers.progress import Facts, Outcome
from redistill.trainers.students import check_student, deliver, obtain_student, try_student
from redistill.trainers.task import Task
from redistill.trainers.teachers import check_teachers, is_to_be_trained, obtain_teachers

logger = logging.getLogger(__name__)


def run(experiment: Experiment[Any], *, resume: bool = False) -> dict[str, Any]:
    """Run an experiment in its folder and return its summary, which is saved there too.

    Raises:
        RedistillError: whatever a user can set right; the message is one line with the remedy.
    """
    experiment.check_settings()
    check_teachers(experiment)
    check_student(experiment)
    if is_to_be_trained(experiment):
        try_student(experiment)
    with sole_writer(experiment.folder) if processes().is_main_process else nullcontext():
        return _run(experiment, resume)


def _run(experiment: Experiment[Any], resume: bool) -> dict[str, Any]:
    experiment.config = config = with_layout(experiment.config, experiment.folder)
    folder = experiment.folder
    write_configuration(config, folder, resume)
    teachers = obtain_teachers(experiment)
    student = obtain_student(experiment, teachers[MAIN])
    experiment.check_student(student)
    if experiment.config.distillation.methods and not is_trained(config.teacher):
        logger.warning("the teacher %s has random weights; set teacher.weights, or a recipe", config.teacher.model)
    task = experiment.make_task(experiment.make_distiller(student, teachers))
    facts = Facts.of(resolved(config), teachers)
    loop = Loop(task, config.recipe, config.run, folder, config.data.workers, facts)
    outcome = loop.run(resume=resume)
    summary = summarise(task, outcome)
    if not config.run.brief and is_trained(config.teacher):
        summary["teacher"] = measure_teacher(experiment, loop, teachers[MAIN])
    if loop.accelerator.is_main_process:
        deliver(student, folder)
    summary |= experiment.follow_up(loop, student, teachers[MAIN])
    if processes().is_main_process:
        write_atomically(folder.summary, json.dumps(_finite(summary), indent=1, allow_nan=False).encode())
    return summary


def measure_teacher(experiment: Experiment[Any], loop: Loop, teacher: nn.Module) -> dict[str, Any]:
    """The main teacher on the same images, as it is."""
    task, data = experiment.make_task(teacher).eval(), experiment.data
    task.prepare(loop.accelerator.device, channels_last=bool(experiment.config.run.channels_last), compiled=False)
    return {"validation": loop.measure(data.validation, task), "test": loop.measure(data.test, task)}


def is_trained(teacher: TeacherConfig) -> bool:
    """Whether a teacher has learnt anything; one without recipe and weights only lends its architecture."""
    return teacher.recipe is not None or choose_weights(parse_spec(teacher.model), teacher.weights).kind != "random"


def summarise(task: Task, outcome: Outcome) -> dict[str, Any]:
    """The run in figures."""
    return {
        "processes": processes().num_processes,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "parameters": sum(parameter.numel() for parameter in task.network.parameters()),
        "helper_parameters": task.distillation.extra_parameters(),
        "start": outcome.start,
        "last": {"validation": outcome.validation, "test": outcome.test},
        "best": {"validation": outcome.best_validation, "test": outcome.best_test},
    }


def render(experiment: Experiment[Any], summary: dict[str, Any]) -> str:
    """The closing table."""
    helpers = ", ".join(f"{name} {count:,}" for name, count in summary["helper_parameters"].items()) or "none"
    return "\n".join(
        [
            render_table(experiment.rows(summary)),
            f"before training: validation {experiment.describe(summary['start'])}",
            f"parameters: {summary['parameters']:,}; helpers while training, not delivered: {helpers}",
            f"student, curves and log: {experiment.folder.path}",
            *experiment.remarks(summary),
        ]
    )


def with_layout(config: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """The configuration with the memory layout decided: that of the run in the folder, else the quicker one here."""
    if config.run.channels_last is not None:
        return config
    written = _written_config(folder, {}).get("run", {}) if folder.is_begun() else {}
    layout = written.get("channels_last", prefers_channels_last(config.run.precision))
    return replace(config, run=replace(config.run, channels_last=layout))


def write_configuration(config: ExperimentConfig, folder: RunFolder, resume: bool) -> None:
    """Save what is run, with versions; a run is neither overwritten nor continued with another configuration."""
    plain = resolved(config)
    if not resume and any(folder.path.glob("checkpoints/step-*")):
        raise CheckpointError(f"{folder.path} already holds a run; continue it with --resume or set run.folder")
    if folder.is_begun():
        changed = differences(_written_config(folder, plain), plain)
        if changed:
            raise CheckpointError(f"{folder.path} was started otherwise: {changed[0]}; set run.folder, or that back")
    processes().wait_for_everyone()
    if processes().is_main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(plain, versions())
    processes().wait_for_everyone()


def _written_config(folder: RunFolder, given: dict[str, Any]) -> dict[str, Any]:
    """What the folder says it was started with; where that is damaged, each checkpoint has it sealed as well."""
    try:
        return folder.read_config()
    except CheckpointError as error:
        logger.warning("%s; the configuration in the checkpoints counts", error)
        return given


def _finite(value: Any) -> Any:
    """Figures as JSON can hold them: what is no number is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "accelerate": str(accelerate.__version__),
    }
