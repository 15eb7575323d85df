"""Metadata: what a file says of itself, so that it can be used without its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from redistill.config.files import read
from redistill.config.settings import ClassifierConfig, DataConfig
from redistill.config.trust import check_trust
from redistill.data.sources import open_source
from redistill.errors import RedistillError
from redistill.trainers.folder import RunFolder


@dataclass(frozen=True)
class Experiment:
    """The run that a student comes from, as far as its folder tells."""

    path: Path
    config: ClassifierConfig


def find_experiment(folder: Path, trust: bool = False) -> Experiment | None:
    """The classifier's run whose folder holds ``folder``, if there is one.

    Raises:
        TrustError: it names code to import, and nobody has said that it may.
    """
    run = RunFolder(folder.absolute().parent)
    try:
        config = read(ClassifierConfig, run.read_config())
    except RedistillError:
        return None
    check_trust(config, run.config, trust)
    return Experiment(run.config, config)


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
