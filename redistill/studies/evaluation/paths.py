"""What a path is: a run of the denoiser's trainer, its best weights, a checkpoint, a student, or images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from redistill import recipe
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import read
from redistill.errors import EvaluationError
from redistill.trainers.loop import BEST

Kind = Literal["run", "best", "checkpoint", "student", "images"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
WEIGHTS = {"best": "best validated weights", "checkpoint": "weights of that step"}


@dataclass(frozen=True)
class Run:
    """A run's folder and its resolved configuration."""

    folder: Path
    config: DenoiserConfig
    raw: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the finished network's weights."""
        student = self.folder / "student"
        return student / (recipe.WEIGHTS if (student / recipe.RECIPE).is_file() else "model.safetensors")

    @property
    def rewrites(self) -> bool:
        """Whether its network is a student; otherwise it is the teacher's architecture itself."""
        student = self.config.student
        return any(wish is not None for wish in (student.budget, student.factors, student.folder, student.model))


@dataclass(frozen=True)
class Place:
    """A path, what it is, and the run that it belongs to; images have none, nor a student that lies elsewhere."""

    path: Path
    kind: Kind
    run: Run | None = None

    def settings(self) -> dict[str, Any]:
        """What the run says of data and diffusion, to start an evaluation's configuration from."""
        return {} if self.run is None else {name: self.run.raw[name] for name in ("data", "diffusion")}

    def __str__(self) -> str:
        if self.run is None:
            return str(self.path)
        weights = WEIGHTS.get(self.kind, "last weights")
        return f"{self.path}, {weights}, {averaging(self.run.config.recipe.ema)}"


def find(path: Path) -> Place:
    """Tell what a path is.

    Raises:
        EvaluationError: nothing that can be evaluated.
    """
    if not path.exists():
        raise EvaluationError(f"there is no {path}; give a run, a checkpoint, a student's folder or a folder of images")
    if (path / recipe.RECIPE).is_file():
        run = open_run(path.parent) if (path.parent / "config.yaml").is_file() else None
        return Place(path, "student", run)
    if path.name == BEST:
        return Place(path, "best", open_run(path.parent))
    if path.parent.name == "checkpoints":
        return Place(path, "checkpoint", open_run(path.parent.parent))
    if (path / "config.yaml").is_file():
        return Place(path, "run", open_run(path))
    if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return Place(path, "images")
    raise EvaluationError(f"{path} is no run, no checkpoint, no student, and holds no PNG or JPEG images")


def open_run(folder: Path) -> Run:
    """A run of the denoiser's trainer.

    Raises:
        EvaluationError: it has no configuration, or is a run of another trainer.
    """
    file = folder / "config.yaml"
    try:
        raw = yaml.safe_load(file.read_text())["config"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{file} cannot be read, which says what the network is; give the folder of a run"
        ) from error
    if raw.get("trainer") != "denoiser":
        raise EvaluationError(f"{folder} is a run of the {raw.get('trainer')} trainer; only denoisers are evaluated")
    return Run(folder, read(DenoiserConfig, raw), raw)


def averaging(ema: float | None) -> str:
    """Whether weights are a moving average."""
    return f"EMA {ema:g}" if ema else "no EMA"
