"""The student's folder: a readable recipe and safetensors, written whole or not at all, and no pickle."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from redistill.errors import StudentError

RECIPE = "student.yaml"
WEIGHTS = "weights.safetensors"
FORMAT = 2
_FLAT = ("budget", "convention", "dtype", "objective", "reorder", "init")
"""What the first format kept beside the plan; later ones keep it as the request."""


def write(directory: Path, recipe: dict[str, Any], module: nn.Module) -> Path:
    """Write ``recipe`` and the weights of ``module`` to ``directory``; a student already there is replaced.

    Raises:
        StudentError: the folder cannot be written, or holds something that is not a student.
    """
    if (
        directory.exists()
        and not (directory / RECIPE).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise StudentError(f"{directory} exists and is not a student; choose another folder or remove it")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
            _fill(Path(scratch) / "new", recipe, module)
            if directory.exists():
                os.replace(directory, Path(scratch) / "old")
            os.replace(Path(scratch) / "new", directory)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudentError(f"cannot write the student to {directory}: {reason}") from error
    return directory


def _fill(folder: Path, recipe: dict[str, Any], module: nn.Module) -> None:
    folder.mkdir()
    safetensors.torch.save_model(module, str(folder / WEIGHTS))
    versions = {"torch": str(torch.__version__), "torchvision": metadata.version("torchvision")}
    whole = {
        "format": FORMAT,
        **recipe,
        "versions": versions,
        "weights": {"file": WEIGHTS, "sha256": _digest(folder / WEIGHTS)},
    }
    (folder / RECIPE).write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))


def read(directory: Path) -> dict[str, Any]:
    """The recipe of a student folder, its weights' checksum verified.

    Raises:
        StudentError: the folder is missing, incomplete or damaged.
    """
    try:
        recipe = yaml.safe_load((directory / RECIPE).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "its recipe is not valid YAML"
        raise StudentError(f"{directory} is not a student folder: {RECIPE}: {reason}") from error
    needed = {"format", "teacher", "inputs", "request", "plan", "taps", "weights", "peak_bytes"}
    if isinstance(recipe, dict) and recipe.get("format") == 1:
        recipe = _from_first_format(recipe)
    if not isinstance(recipe, dict) or not needed <= recipe.keys():
        raise StudentError(f"{directory / RECIPE} is damaged: it must have {', '.join(sorted(needed))}")
    if recipe["format"] != FORMAT:
        raise StudentError(f"{directory} has format {recipe['format']}; this version reads format {FORMAT}")
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise StudentError(f"{directory} has no {WEIGHTS}; save the student again")
    if _digest(weights) != recipe["weights"].get("sha256"):
        raise StudentError(f"{weights} is damaged: its checksum is not the recipe's; save the student again")
    return recipe


def _from_first_format(recipe: dict[str, Any]) -> dict[str, Any]:
    request = {key: recipe.get(key) for key in _FLAT}
    if request["objective"] == "factors":
        request |= {"objective": "macs", "factors": [stage["factor"] for stage in recipe["plan"]]}
    return {**recipe, "format": FORMAT, "request": request}


def load_weights(module: nn.Module, directory: Path) -> None:
    """Load the weights of a student folder into ``module``, every key of it.

    Raises:
        StudentError: keys or shapes differ.
    """
    try:
        safetensors.torch.load_model(module, str(directory / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudentError(f"the weights in {directory} do not fit the rebuilt student: {reason}") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
