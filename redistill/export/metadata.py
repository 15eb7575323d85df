"""Metadata: what a file says of itself, so that it can be used without its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from redistill import recipe
from redistill.config.files import read
from redistill.config.settings import ClassifierConfig, DataConfig
from redistill.data.sources import open_source
from redistill.errors import RedistillError

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Experiment:
    """The run that a student comes from, as far as its folder tells."""

    path: Path
    config: ClassifierConfig


def find_student(folder: Path) -> Path:
    """A student's folder: the one given, or ``student`` in a run's folder."""
    inside = folder / "student"
    return inside if not (folder / recipe.RECIPE).is_file() and (inside / recipe.RECIPE).is_file() else folder


def find_experiment(folder: Path) -> Experiment | None:
    """The classifier's run whose folder holds ``folder``, if there is one."""
    path = folder.absolute().parent / CONFIG
    try:
        raw = yaml.safe_load(path.read_text())["config"]
        return Experiment(path, read(ClassifierConfig, raw))
    except (OSError, yaml.YAMLError, KeyError, TypeError, RedistillError):
        return None


def describe_inputs(inputs: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Shape and type of each input."""
    return [{"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for x in inputs]


def describe_data(config: DataConfig) -> dict[str, Any]:
    """How images become inputs, and the classes if the data set is at hand.

    ``range`` is that of the pixels before normalisation: input = (pixel - mean) / std.
    """
    described: dict[str, Any] = {
        "normalisation": {"range": [0.0, 1.0], "mean": list(config.mean), "std": list(config.std)}
    }
    with contextlib.suppress(RedistillError):
        described["classes"] = list(open_source(config).classes)
    return described
