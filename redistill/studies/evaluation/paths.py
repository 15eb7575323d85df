"""What a path is: a run of the denoiser's trainer, its best weights, a checkpoint, a student, or images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from redistill import recipe
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import read
from redistill.config.trust import check_trust
from redistill.errors import EvaluationError
from redistill.models import load_model
from redistill.models.specs import require_trust
from redistill.trainers.folder import RunFolder

Kind = Literal["run", "best", "checkpoint", "student", "images"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
WEIGHTS = {"best": "best validated weights", "checkpoint": "weights of that step"}


@dataclass(frozen=True)
class Run:
    """A run's folder, its resolved configuration, and whether it may name models to import."""

    folder: RunFolder
    config: DenoiserConfig
    raw: dict[str, Any]
    trust: bool = False

    def load_model(self, spec: str, weights: str | Path) -> nn.Module:
        """A model that the configuration names.

        Raises:
            TrustError: it would have to be imported, and nobody has said that it may.
        """
        return load_model(require_trust(spec, self.folder.config, self.trust), weights)

    @property
    def weights(self) -> Path:
        """The file of the finished network's weights."""
        is_student = (self.folder.student / recipe.RECIPE).is_file()
        return self.folder.student / recipe.WEIGHTS if is_student else self.folder.plain_weights

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
    trust: bool = False

    def settings(self) -> dict[str, Any]:
        """What the run says of data and diffusion, to start an evaluation's configuration from."""
        raw = {} if self.run is None else self.run.raw
        return {name: raw[name] for name in ("data", "diffusion") if name in raw}

    def __str__(self) -> str:
        if self.run is None:
            return str(self.path)
        weights = WEIGHTS.get(self.kind, "last weights")
        return f"{self.path}, {weights}, {averaging(self.run.config.recipe.ema)}"


def find(path: Path, trust: bool = False) -> Place:
    """Tell what a path is, and whether it may name models to import.

    Raises:
        EvaluationError: nothing that can be evaluated.
    """
    if not path.exists():
        raise EvaluationError(f"there is no {path}; give a run, a checkpoint, a student's folder or a folder of images")
    if (path / recipe.RECIPE).is_file():
        run = open_run(path.parent, trust) if RunFolder(path.parent).config.is_file() else None
        return Place(path, "student", run, trust)
    if path == RunFolder(path.parent).best:
        return Place(path, "best", open_run(path.parent, trust))
    if path.parent == RunFolder(path.parent.parent).checkpoints:
        return Place(path, "checkpoint", open_run(path.parent.parent, trust))
    if RunFolder(path).config.is_file():
        return Place(path, "run", open_run(path, trust))
    if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return Place(path, "images")
    raise EvaluationError(f"{path} is no run, no checkpoint, no student, and holds no PNG or JPEG images")


def open_run(path: Path, trust: bool = False) -> Run:
    """A run of the denoiser's trainer.

    Raises:
        EvaluationError: it has no configuration, or is a run of another trainer.
        TrustError: it names a model to import, and nobody has said that it may.
    """
    folder = RunFolder(path)
    raw = folder.read_config(EvaluationError)
    if raw.get("trainer") != "denoiser":
        raise EvaluationError(f"{path} is a run of the {raw.get('trainer')} trainer; only denoisers are evaluated")
    config = read(DenoiserConfig, raw)
    check_trust(config, folder.config, trust)
    return Run(folder, config, raw, trust)


def averaging(ema: float | None) -> str:
    """Whether weights are a moving average."""
    return f"EMA {ema:g}" if ema else "no EMA"
