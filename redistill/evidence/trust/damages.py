"""Damages: each file of a stopped run harmed in each way, and the run continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.errors import RedistillError
from redistill.internal.files import remove
from redistill.trainers.classifier import train
from redistill.trainers.folder import RunFolder

SETTINGS = (
    *("data.image_size=16", "data.train_limit=64", "data.test_limit=20", "data.validation=0.02", "recipe.steps=8"),
    *("recipe.batch_size=16", "run.checkpoint_every=3", "run.log_every=1", "run.keep=3", "student.recalibrate=1"),
    *("teacher.recipe.steps=4", "teacher.recipe.batch_size=16", "distillation.methods=kd", "recipe.ema=0.9"),
)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replace_by_link(path: Path) -> None:
    path.rename(path.with_name(f"moved-{path.name}"))
    path.symlink_to(f"moved-{path.name}")


def _replace_by_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


HARMS: dict[str, Callable[[Path], Any]] = {
    "a bit flipped": _flip,
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b'{"a": ' * 5000),
    "removed": remove,
    "a folder instead": _replace_by_folder,
    "a link instead": _replace_by_link,
}


@dataclass
class Damages:
    """Harms that were done, and how the run went on.

    Attributes:
        equal: to the bit as if nothing had been.
        refused: in one line.
        faults: anything else: a silent difference, or another exception.
    """

    done: int = 0
    equal: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def damage_files(place: Path, every: int = 1) -> Damages:
    """Harm each file of a run that was stopped, in each way (or each so-manieth harm), and let it go on."""
    straight, stopped = place / "straight", place / "stopped"
    train(_config(straight), straight)
    expected = _outcome(straight)
    shutil.copytree(straight, stopped)
    _undo_the_end(RunFolder(stopped))
    harms = [(path, name) for path in _targets(stopped) for name in HARMS]
    damages = Damages()
    for path, name in harms[::every]:
        _try(straight, stopped, path, name, expected, damages)
    return damages


def _config(folder: Path) -> ClassifierConfig:
    return load(ClassifierConfig, "digits/smoke.yaml", (*SETTINGS, "run.folder=run"))


def _targets(folder: Path) -> list[Path]:
    """Every file, and every checkpoint as a whole."""
    files = [
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    ]
    return sorted(files)


def _undo_the_end(folder: RunFolder) -> None:
    """A run that was stopped after its last checkpoint but one."""
    for path in (folder.summary, folder.student, folder.curves, sorted(folder.checkpoints.glob("step-*"))[-1]):
        remove(path)


def _try(straight: Path, stopped: Path, path: Path, name: str, expected: Any, damages: Damages) -> None:
    place = stopped.with_name("harmed")
    remove(place)
    shutil.copytree(stopped, place)
    HARMS[name](place / path)
    damages.done += 1
    try:
        train(_config(place), place, resume=True)
        if _outcome(place) == expected:
            damages.equal += 1
        else:
            damages.faults.append(f"{path}, {name}: another outcome")
    except RedistillError:
        damages.refused += 1
    except BaseException as error:
        damages.faults.append(f"{path}, {name}: {type(error).__name__}: {str(error)[:120]}")


def _outcome(folder: Path) -> Any:
    """The delivered weights to the bit, and the figures."""
    run = RunFolder(folder)
    weights = load_file(run.student / "weights.safetensors")
    summary = {name: value for name, value in run.read_summary().items() if name != "costs"}
    return {name: value.numpy().tobytes() for name, value in weights.items()}, summary
