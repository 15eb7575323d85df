"""Kills at random moments: what is under way is killed, started again, and compared with what nobody disturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from redistill.internal.boundary import run
from redistill.internal.documents import dump_yaml
from redistill.internal.files import checksum
from redistill.trainers.folder import RunFolder

LIVES = 8
"""Kills of one run before it is finished and compared, and another is begun."""
DATA = ("data.image_size=16", "data.train_limit=64", "data.test_limit=20", "data.validation=0.02")
STEPS = (
    "recipe.batch_size=16",
    "recipe.steps=12",
    "run.checkpoint_every=3",
    "run.log_every=2",
    "student.recalibrate=1",
)


@dataclass
class Toll:
    """Kills, comparisons afterwards, and each that found a difference or something half-written."""

    kills: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)


class Work(ABC):
    """Something that is killed.

    Attributes:
        module: whose ``main`` does it.
    """

    module: ClassVar[str]

    @abstractmethod
    def arguments(self, folder: Path) -> list[str]:
        """The command line that begins it, or goes on."""

    @abstractmethod
    def outcome(self, folder: Path) -> Any:
        """What is compared once it is finished."""

    def fault(self, folder: Path) -> str | None:
        """What must not be seen after a kill."""
        return None

    def begin(self, folder: Path) -> BaseProcess:
        """Start it in a process of its own, parted from a server that has only imported: this one may have threads."""
        context = multiprocessing.get_context("forkserver")
        multiprocessing.set_forkserver_preload([__name__, self.module])
        process = context.Process(target=_do, args=(self.module, self.arguments(folder)))
        process.start()
        return process

    def finish(self, folder: Path) -> bool:
        """Let it come to its end; whether it did well."""
        process = self.begin(folder)
        process.join()
        return process.exitcode == 0


def _do(module: str, arguments: list[str]) -> None:
    os.setpgrp()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os._exit(run(import_module(module).main, arguments))


class Training(Work):
    """A run of a trainer."""

    config: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]

    def arguments(self, folder: Path) -> list[str]:
        """Resumed each time."""
        given = (*DATA, *STEPS, *self.settings, f"run.folder={folder}")
        return ["--config", self.config, "--resume", *(word for text in given for word in ("--set", text))]

    def outcome(self, folder: Path) -> Any:
        """Weights, figures and losses."""
        run_folder = RunFolder(folder)
        entries = [json.loads(line) for line in run_folder.log.read_text().splitlines()]
        log = [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in entries]
        summary = run_folder.read_summary()
        summary.pop("costs", None)
        weights = [checksum(path) for path in sorted(folder.rglob("student/*.safetensors"))]
        return weights, summary, log


class Classifier(Training):
    """A classifier whose teacher is trained first."""

    module = "redistill.trainers.classifier"
    config = "digits/smoke.yaml"
    settings = (
        "teacher.recipe.steps=6",
        "teacher.recipe.batch_size=16",
        "student.taps=auto",
        "distillation.methods=red+kd",
        "recipe.ema=0.9",
    )


class Denoiser(Training):
    """A denoiser."""

    module = "redistill.trainers.denoiser"
    config = "digits/ddpm_smoke.yaml"
    settings = (
        "teacher.recipe=null",
        "teacher.weights=null",
        "sampling.images=4",
        "sampling.steps=2",
        "recipe.ema=0.9",
    )


class Int8(Training):
    """A classifier with its int8 stage."""

    module = "redistill.trainers.classifier"
    config = "digits/int8.yaml"
    settings = ("teacher.recipe=null", "teacher.weights=null", "quantization.epochs=2", "quantization.images=16")


class Comparison(Work):
    """Two rows of a comparison."""

    module = "redistill.studies.comparison.__main__"

    def arguments(self, folder: Path) -> list[str]:
        """With its own file."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = [*DATA, *STEPS, "recipe.steps=4", "teacher.recipe.steps=3", "teacher.recipe.batch_size=16"]
        grid = {"plans": {"2x": ["student.budget=2x"]}, "starts": {"teacher": []}, "methods": ["none", "kd"]}
        file = folder / "comparison.yaml"
        file.write_text(
            dump_yaml({"experiment": "digits/smoke.yaml", "settings": settings, "seeds": [0], "grids": [grid]})
        )
        return ["--config", str(file), "--folder", str(folder)]

    def outcome(self, folder: Path) -> Any:
        """The figures of every run; the table's latencies are what they are."""
        summaries = {path.parent.name: RunFolder(path.parent).read_summary() for path in folder.rglob("summary.json")}
        figures = {name: {k: v for k, v in found.items() if k != "costs"} for name, found in sorted(summaries.items())}
        return figures, (folder / "table.md").exists()


class Saving(Work):
    """A student saved over another, in turn; either must be there, whole, and a file of the user's own as well."""

    module = "redistill.commands.transform"
    turn = 0

    def arguments(self, folder: Path) -> list[str]:
        """One of two budgets."""
        self.turn += 1
        model = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
        budget = ("2x", "1.5x")[self.turn % 2]
        return ["--model", model, "--input", "3x32x32", "--budget", budget, "--output", str(folder / "student")]

    def fault(self, folder: Path) -> str | None:
        """No student, half a student, or the user's file gone."""
        from redistill import load_student

        if not (folder / "student").exists():
            return None
        try:
            load_student(folder / "student")
        except Exception as error:
            return f"the student is lost: {error}"
        own = folder / "student" / "notes.txt"
        if own.parent.joinpath("had-notes").exists() and not own.exists():
            return "the user's file is gone"
        own.write_text("mine")
        own.parent.joinpath("had-notes").touch()
        return None

    def outcome(self, folder: Path) -> Any:
        """Both turns, one after the other."""
        self.turn = 0
        assert self.finish(folder)
        return {name: value.sum() for name, value in load_file(folder / "student" / "weights.safetensors").items()}


class Export(Work):
    """A file written over another: the old one or the new one."""

    module = "redistill.export.__main__"

    def arguments(self, folder: Path) -> list[str]:
        """To torch's own format."""
        folder.mkdir(parents=True, exist_ok=True)
        model = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
        return [
            "--model",
            model,
            "--input",
            "3x32x32",
            "--format",
            "pt2",
            "--output",
            str(folder / "net.pt2"),
            "--force",
        ]

    def fault(self, folder: Path) -> str | None:
        """A file that cannot be opened."""
        path = folder / "net.pt2"
        try:
            if path.exists():
                torch.export.load(path)
        except Exception as error:
            return f"the file is half-written: {error}"
        return None

    def outcome(self, folder: Path) -> Any:
        """Whether the file is there."""
        return (folder / "net.pt2").stat().st_size > 0


WORKS: dict[str, Callable[[], Work]] = {
    "classifier": Classifier,
    "denoiser": Denoiser,
    "int8": Int8,
    "comparison": Comparison,
    "transform": Saving,
    "export": Export,
}


def kill_works(names: Sequence[str], kills: int, seed: int) -> dict[str, Toll]:
    """So many kills shared out among works, at moments that are the same at each call with a seed."""
    share = [kills // len(names) + (index < kills % len(names)) for index in range(len(names))]
    return {name: _kill(WORKS[name](), count, f"{seed} {name}") for name, count in zip(names, share, strict=True)}


def _kill(work: Work, kills: int, seed: str) -> Toll:
    chance, toll = random.Random(seed), Toll()
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        straight = Path(place) / "straight"
        if not work.finish(straight):
            toll.faults.append("it does not come to its end undisturbed")
            return toll
        seconds, expected = time.perf_counter() - started, work.outcome(straight)
        while toll.kills < kills:
            folder = Path(place) / f"killed-{toll.kills}"
            for _ in range(min(LIVES, kills - toll.kills)):
                _kill_once(work, folder, chance.uniform(0.05, 0.9) * seconds, toll)
            toll.compared += 1
            if not work.finish(folder):
                toll.faults.append("it cannot go on after a kill")
            elif _resembles(work.outcome(folder), expected, folder, straight):
                toll.faults.append("what came out is not equal")
    return toll


def _resembles(found: Any, expected: Any, folder: Path, straight: Path) -> bool:
    """Whether two outcomes differ in more than the folders' names."""
    return str(found).replace(str(folder), "") != str(expected).replace(str(straight), "")


def _kill_once(work: Work, folder: Path, seconds: float, toll: Toll) -> None:
    process = work.begin(folder)
    time.sleep(seconds)
    kill(process)
    toll.kills += 1
    fault = work.fault(folder)
    if fault:
        toll.faults.append(fault)


def kill(process: BaseProcess) -> None:
    """End a process and those that it started, at once."""
    child = process.pid
    assert child is not None
    if process.is_alive():
        os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
    process.join()
