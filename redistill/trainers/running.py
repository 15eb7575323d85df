"""Running an experiment, whatever its kind: teachers, student, training, and what is left in the folder."""

from __future__ import annotations

import json
import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate
import torch
import torchvision
import yaml
from torch import nn

from redistill.config.files import differences, resolved
from redistill.config.settings import ExperimentConfig, TeacherConfig
from redistill.distillation import MAIN
from redistill.errors import CheckpointError
from redistill.models.specs import parse_spec
from redistill.models.weights import choose_weights
from redistill.trainers.acceleration import processes
from redistill.trainers.checkpoint import sole_writer, write_atomically
from redistill.trainers.experiment import Experiment
from redistill.trainers.loop import Loop, Outcome
from redistill.trainers.record import table
from redistill.trainers.students import deliver, obtain_student
from redistill.trainers.task import Task
from redistill.trainers.teachers import obtain_teachers


def run(experiment: Experiment[Any], *, resume: bool = False) -> dict[str, Any]:
    """Run an experiment in its folder and return its summary, which is saved there too.

    Raises:
        RedistillError: whatever a user can set right; the message is one line with the remedy.
    """
    experiment.check_settings()
    with sole_writer(experiment.folder) if processes().is_main_process else nullcontext():
        return _run(experiment, resume)


def _run(experiment: Experiment[Any], resume: bool) -> dict[str, Any]:
    config, folder = experiment.config, experiment.folder
    write_configuration(config, folder, resume)
    teachers = obtain_teachers(experiment)
    student = obtain_student(experiment, teachers[MAIN])
    experiment.check_student(student)
    task = experiment.make_task(experiment.make_distiller(student, teachers))
    loop = Loop(task, config.recipe, config.run, folder, config.data.workers)
    outcome = loop.run(resume=resume)
    summary = summarise(task, outcome)
    if not config.run.brief and is_trained(config.teacher):
        summary["teacher"] = measure_teacher(experiment, loop, teachers[MAIN])
    if loop.accelerator.is_main_process:
        deliver(student, folder / "student")
    summary |= experiment.follow_up(loop, student, teachers[MAIN])
    if processes().is_main_process:
        write_atomically(folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def measure_teacher(experiment: Experiment[Any], loop: Loop, teacher: nn.Module) -> dict[str, Any]:
    """The main teacher on the same images, as it is."""
    task, data = experiment.make_task(teacher).eval(), experiment.data
    task.prepare(loop.accelerator.device, channels_last=experiment.config.run.channels_last, compiled=False)
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
            table(experiment.rows(summary)),
            f"before training: validation {experiment.describe(summary['start'])}",
            f"parameters: {summary['parameters']:,}; helpers while training, not delivered: {helpers}",
            f"student, curves and log: {experiment.folder}",
            *experiment.remarks(summary),
        ]
    )


def write_configuration(config: ExperimentConfig, folder: Path, resume: bool) -> None:
    """Save what is run, with versions; a run is neither overwritten nor continued with another configuration."""
    path, plain = folder / "config.yaml", resolved(config)
    if not resume and any(folder.glob("checkpoints/step-*")):
        raise CheckpointError(f"{folder} already holds a run; continue it with --resume or set run.folder")
    if path.exists() and any(folder.glob("**/checkpoints/step-*")):
        changed = differences(yaml.safe_load(path.read_text())["config"], plain)
        if changed:
            raise CheckpointError(f"{folder} was started otherwise: {changed[0]}; set run.folder, or that back")
    processes().wait_for_everyone()
    if processes().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"config": plain, "versions": versions()}, sort_keys=False)
        write_atomically(path, text.encode())
    processes().wait_for_everyone()


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "accelerate": str(accelerate.__version__),
    }
