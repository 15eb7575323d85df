"""A run's folder: what lies where, known here alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill import recipe
from redistill.errors import CheckpointError, RedistillError
from redistill.internal.documents import dump_yaml, read_json, read_yaml
from redistill.internal.files import write_atomically


@dataclass(frozen=True)
class RunFolder:
    """The places inside the folder of a run, of a teacher's training, or of the int8 stage; nothing need be there.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @classmethod
    def at(cls, path: Path | RunFolder) -> RunFolder:
        """The folder at a path, or the one given."""
        return path if isinstance(path, RunFolder) else cls(path)

    @property
    def config(self) -> Path:
        """The resolved configuration, with versions."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """The figures of a finished run."""
        return self.path / "summary.json"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def curves(self) -> Path:
        """Losses and metrics as a picture."""
        return self.path / "curves.png"

    @property
    def board(self) -> Path:
        """TensorBoard's folder."""
        return self.path / "tensorboard"

    @property
    def best(self) -> Path:
        """The best validated weights."""
        return self.path / "best.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        """What a process at work holds."""
        return self.path / ".lock"

    @property
    def student(self) -> Path:
        """The folder of the finished network: a student, or plain weights."""
        return self.path / "student"

    @property
    def plain_weights(self) -> Path:
        """The finished network's weights where it is no student."""
        return self.student / "model.safetensors"

    @property
    def trained_weights(self) -> Path:
        """The weights of a teacher that was trained in this folder."""
        return self.path / "weights.safetensors"

    @property
    def program(self) -> Path:
        """The int8 network."""
        return self.path / "student_int8.pt2"

    @property
    def int8(self) -> RunFolder:
        """The int8 stage's own folder."""
        return RunFolder(self.path / "int8")

    def teacher(self, name: str) -> RunFolder:
        """The folder of a teacher's training."""
        return RunFolder(self.path / name)

    def samples(self, step: int | None = None) -> Path:
        """A grid of images that the network makes, at a step or at the end."""
        return self.path / ("samples.png" if step is None else f"samples-{step:09d}.png")

    def is_begun(self) -> bool:
        """Whether some checkpoint is there, of the run itself or of a teacher."""
        return any(self.path.glob("checkpoints/step-*")) or any(self.path.glob("*/checkpoints/step-*"))

    def read_config(self, error: type[RedistillError] = CheckpointError) -> dict[str, Any]:
        """The resolved configuration as plain data.

        Raises:
            error: it is missing or damaged.
        """
        found = read_yaml(self.config, error)
        inner = found.get("config") if isinstance(found, dict) else None
        if not isinstance(inner, dict):
            raise error(f"{self.config} holds no run's configuration; give the folder of a run")
        return inner

    def write_config(self, config: dict[str, Any], versions: dict[str, str]) -> None:
        """Write the resolved configuration."""
        write_atomically(self.config, dump_yaml({"config": config, "versions": versions}).encode())

    def read_summary(self, error: type[RedistillError] = CheckpointError) -> dict[str, Any]:
        """The figures of a finished run.

        Raises:
            error: they are missing or damaged.
        """
        found = read_json(self.summary, error)
        if not isinstance(found, dict):
            raise error(f"{self.summary} holds no run's figures; run again")
        return found


def find_student(folder: Path) -> Path:
    """A student's folder: the one given, or ``student`` in a run's folder."""
    inside = RunFolder(folder).student
    return inside if not (folder / recipe.RECIPE).is_file() and (inside / recipe.RECIPE).is_file() else folder
