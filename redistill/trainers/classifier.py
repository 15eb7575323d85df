"""Distil a classifier into its memory-bounded student.

    python -m redistill.trainers.classifier                                  # minutes on a CPU, nothing to download
    accelerate launch -m redistill.trainers.classifier --config stl10/mobilenetv2.yaml --set data.root=/data
    python -m redistill.trainers.classifier --config my.yaml --set distillation.methods=red+kd --set student.budget=8x
    python -m redistill.trainers.classifier --config digits/int8.yaml        # and its int8 student, trained rounded
    python -m redistill.trainers.classifier --list

One YAML file is one experiment: data, teacher, student, distillation, recipe, run. A run's folder holds the resolved
configuration, a log, curves, checkpoints, the best weights and the finished student; --resume continues it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import torch
import torchvision
import yaml
from torch import nn

import redistill
from redistill.errors import ConfigError, RedistillError
from redistill.trainers import seeding
from redistill.trainers.acceleration import leave_processes, processes, warn_of_missing_processes
from redistill.trainers.checkpoint import write_atomically
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.config import differences, load, packaged, resolved
from redistill.trainers.data import DataSets, open_data
from redistill.trainers.distillation import MAIN, METHODS, Distillation
from redistill.trainers.errors import CheckpointError
from redistill.trainers.int8 import check_float_modules, check_int8, quantize_student, render_int8
from redistill.trainers.loop import Loop, Outcome
from redistill.trainers.record import table
from redistill.trainers.settings import ClassifierConfig
from redistill.trainers.students import deliver, obtain_student
from redistill.trainers.suggestions import suggest
from redistill.trainers.teachers import obtain_teachers
from redistill.trainers.views import StudentView, view_teacher

SMOKE = "digits/smoke.yaml"
PROBE = 32


def train(config: ClassifierConfig, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run an experiment into a folder and return its summary, which is saved there too.

    Raises:
        RedistillError: whatever a user can set right; the message is one line with the remedy.
    """
    check_int8(config)
    write_configuration(config, folder, resume)
    data = open_data(config.data, config.run.seed)
    teachers = obtain_teachers(config, data, folder)
    student = obtain_student(config, teachers[MAIN], data)
    check_float_modules(config, student)
    task = make_task(config, data, teachers, student)
    loop = Loop(task, config.recipe, config.run, folder, config.data.workers)
    outcome = loop.run(resume=resume)
    summary = summarise(task, outcome)
    if not config.run.brief:
        summary["teacher"] = measure_teacher(config, loop, data, teachers[MAIN])
    if loop.accelerator.is_main_process:
        deliver(student, folder / "student")
    if config.quantization.mode == "int8":
        summary["int8"] = quantize_student(config, loop, student, teachers[MAIN], folder)
    if processes().is_main_process:
        write_atomically(folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def make_task(
    config: ClassifierConfig, data: DataSets, teachers: Mapping[str, nn.Module], student: nn.Module
) -> ClassifierTask:
    """Connect student and teachers by the methods that are asked for."""
    distillation = Distillation(config.distillation.methods)
    if not distillation.parts:
        return ClassifierTask(student, data, config.targets, config.distillation)
    if not isinstance(student, redistill.Student):
        raise ConfigError("methods need a student with taps; set student.budget, student.factors or student.folder")
    for name in distillation.teachers:
        if name not in teachers:
            raise ConfigError(f"distillation: there is no teacher {name!r}{suggest(name, teachers)}")
    show_student = StudentView(student, distillation.needs)
    show_teachers = {
        name: view_teacher(student, teachers[name], needs) for name, needs in distillation.teachers.items()
    }
    images = torch.stack([data.calibration[index]["inputs"] for index in range(min(PROBE, len(data.calibration)))])
    student.eval()
    with torch.no_grad(), seeding.seeded(config.run.seed, "helpers"):
        shown = {name: show(images) for name, show in show_teachers.items()}
        distillation.build(show_student(images), shown, data.training_set)
    return ClassifierTask(student, data, config.targets, config.distillation, show_student, show_teachers, distillation)


def measure_teacher(config: ClassifierConfig, loop: Loop, data: DataSets, teacher: nn.Module) -> dict[str, Any]:
    """The main teacher on the same images, as it is."""
    task = ClassifierTask(teacher, data, config.targets).eval()
    task.prepare(loop.accelerator.device, channels_last=config.run.channels_last, compiled=False)
    return {"validation": loop.measure(data.validation, task), "test": loop.measure(data.test, task)}


def summarise(task: ClassifierTask, outcome: Outcome) -> dict[str, Any]:
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


def render(summary: dict[str, Any], folder: Path) -> str:
    """The closing table."""
    rows: list[tuple[str, ...]] = [("weights", "validation top-1", "test top-1", "test top-5", "test loss")]
    for name in sorted({"teacher", "last", "best"} & summary.keys(), reverse=True):
        validation, test = summary[name]["validation"], summary[name]["test"]
        figures = (validation["top1"], test["top1"], test["top5"])
        rows.append((name, *(f"{value:.2f} %" for value in figures), f"{test['loss']:.4f}"))
    helpers = ", ".join(f"{name} {count:,}" for name, count in summary["helper_parameters"].items()) or "none"
    return "\n".join(
        [
            table(rows),
            f"before training: validation top-1 {summary['start']['top1']:.2f} %",
            f"parameters: {summary['parameters']:,}; helpers while training, not delivered: {helpers}",
            f"student, curves and log: {folder}",
            *(["", render_int8(summary)] if "int8" in summary else []),
        ]
    )


def write_configuration(config: ClassifierConfig, folder: Path, resume: bool) -> None:
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


def listing() -> str:
    """The packaged experiments and the methods."""
    experiments = "\n".join(f"  {name:34} {description}" for name, description in packaged("classifier").items())
    methods = "\n".join(
        f"  {name:10} {(sys.modules[kind.__module__].__doc__ or '').splitlines()[0]}" for name, kind in METHODS.items()
    )
    comparisons = ", ".join(packaged("comparison"))
    return (
        f"experiments (--config):\n{experiments}\n\n"
        f"for redistill.trainers.comparison: {comparisons}\n\n"
        f"methods (--set distillation.methods=red+kd):\n{methods}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="redistill.trainers.classifier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=SMOKE, help="a packaged experiment (see --list) or a path; %(default)s")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in its folder")
    parser.add_argument("--list", action="store_true", help="show the packaged experiments and methods, and stop")
    options = parser.parse_args(arguments)
    if options.list:
        sys.stdout.write(listing() + "\n")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("redistill").setLevel(logging.INFO if _is_first() else logging.ERROR)
    warn_of_missing_processes()
    try:
        config = load(ClassifierConfig, options.config, options.set)
        folder = Path(config.run.folder or Path("runs") / Path(options.config).with_suffix(""))
        summary = train(config, folder, resume=options.resume)
    except RedistillError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: {error}; make room, or set run.folder to a place that can be written\n")
        return RedistillError.exit_code
    finally:
        leave_processes()
    if processes().is_main_process:
        sys.stdout.write(render(summary, folder) + "\n")
    return 0


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
