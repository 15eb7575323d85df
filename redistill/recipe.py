"""The student's folder: a readable recipe and safetensors, sealed together, replaced in one step, and no pickle.

The recipe names the weights by their checksum. Where a student is saved over another, the new weights are laid beside
the old ones first, then the recipe is exchanged in one step, and only then do the new weights take their usual name.
Whoever is killed in between leaves the old student or the new one: a reader takes the weights whose checksum is the
recipe's. Whatever else lies in the folder stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from redistill.config.recipe_fields import check_recipe
from redistill.errors import ConfigError, RedistillError, StudentError
from redistill.internal.documents import dump_yaml, read_yaml
from redistill.internal.files import checksum, flush, refuse_link, write_atomically
from redistill.internal.reasons import reason

RECIPE = "student.yaml"
WEIGHTS = "weights.safetensors"
WAITING = ".weights-{}.safetensors"
"""Weights that have not got their name yet, by their checksum."""
FORMAT = 2
_FLAT = ("budget", "convention", "dtype", "objective", "reorder", "init")
"""What the first format, which had no seal, kept beside the plan; later ones keep it as the request. Taps were auto."""


def write(directory: Path, recipe: dict[str, Any], module: nn.Module) -> Path:
    """Write ``recipe`` and the weights of ``module`` to ``directory``; a student already there is replaced.

    Raises:
        StudentError: the folder cannot be written, is a link, or holds something that is not a student.
    """
    check_place(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.exists():
            _fill(directory, recipe, module)
        else:
            _create(directory, recipe, module)
    except (OSError, SafetensorError, RedistillError) as error:
        raise StudentError(f"cannot write the student to {directory}: {reason(error)}") from error
    return directory


def check_place(directory: Path) -> None:
    """Raise where a student may not be written.

    Raises:
        StudentError: the folder is a link, or holds something that is not a student.
    """
    try:
        refuse_link(directory)
        is_free = not directory.exists() or (directory / RECIPE).is_file() or not any(directory.iterdir())
    except (OSError, RedistillError) as error:
        raise StudentError(f"cannot write the student to {directory}: {reason(error)}") from error
    if not is_free:
        raise StudentError(
            f"cannot write the student to {directory}: it exists and is not a student; choose another folder or "
            "remove it"
        )


def _create(directory: Path, recipe: dict[str, Any], module: nn.Module) -> None:
    """A new folder appears with all that belongs into it."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        _fill(new, recipe, module)
        os.rename(new, directory)
    flush(directory.parent)


def _fill(folder: Path, recipe: dict[str, Any], module: nn.Module) -> None:
    """Lay the weights down, exchange the recipe, give the weights their name."""
    refuse_link(folder / WEIGHTS)
    waiting, digest = _lay_down(folder, module)
    versions = {"torch": str(torch.__version__), "torchvision": metadata.version("torchvision")}
    weights = {"file": WEIGHTS, "sha256": digest}
    whole = {"format": FORMAT, **recipe, "versions": versions, "weights": weights}
    write_atomically(folder / RECIPE, sealed(whole).encode())
    os.replace(waiting, folder / WEIGHTS)
    for other in folder.glob(WAITING.format("*")):
        other.unlink()
    flush(folder)


def _lay_down(folder: Path, module: nn.Module) -> tuple[Path, str]:
    """The weights as a file that is named by its checksum, and that."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        safetensors.torch.save_model(module, name)
        temporary.chmod(0o666 & ~_umask())
        flush(temporary)
        digest = checksum(temporary)
        waiting = folder / WAITING.format(digest)
        os.replace(temporary, waiting)
    finally:
        temporary.unlink(missing_ok=True)
    return waiting, digest


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sealed(recipe: dict[str, Any]) -> str:
    """A recipe as YAML, with a checksum over everything in it, that of the weights included."""
    return dump_yaml({**recipe, "seal": _seal(recipe)})


def _seal(recipe: dict[str, Any]) -> str:
    plain = json.dumps({key: value for key, value in recipe.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def read(directory: Path) -> dict[str, Any]:
    """The recipe of a student folder, its seal and its weights' checksum verified.

    Raises:
        StudentError: the folder is missing, incomplete or damaged.
    """
    recipe = _read(directory)
    if find_weights(directory, recipe) is None:
        recipe = _read(directory)  # it may have been saved over between the two files
    if find_weights(directory, recipe) is None:
        if not (directory / WEIGHTS).is_file():
            raise StudentError(f"{directory} has no {WEIGHTS}; save the student again")
        raise StudentError(
            f"{directory / WEIGHTS} is damaged: its checksum is not the recipe's; save the student again"
        )
    return recipe


def _read(directory: Path) -> dict[str, Any]:
    try:
        recipe = read_yaml(directory / RECIPE, StudentError)
    except StudentError as error:
        raise StudentError(f"{directory} is not a student folder: {error}") from error
    needed = {"format", "teacher", "inputs", "request", "plan", "taps", "weights", "peak_bytes"}
    first = isinstance(recipe, dict) and recipe.get("format") == 1
    if first:
        recipe = _from_first_format(recipe, directory)
    if not isinstance(recipe, dict) or not needed <= recipe.keys():
        raise StudentError(f"{directory / RECIPE} is damaged: it must have {', '.join(sorted(needed))}")
    if recipe["format"] != FORMAT:
        raise StudentError(
            f"{directory} has format {recipe['format']}; this version reads format {FORMAT}: save the student again"
        )
    if not first and recipe.get("seal") != _seal(recipe):
        raise StudentError(f"{directory / RECIPE} is damaged: its checksum is not its own; save the student again")
    try:
        check_recipe(recipe)
    except ConfigError as error:
        raise StudentError(f"{directory / RECIPE} cannot be used: {error}") from error
    return recipe


def _from_first_format(recipe: dict[str, Any], directory: Path) -> dict[str, Any]:
    request = {"taps": "auto"} | {key: recipe[key] for key in _FLAT if key in recipe}
    try:
        if request.get("objective") == "factors":
            request |= {"objective": "macs", "factors": [stage["factor"] for stage in recipe["plan"]]}
    except (KeyError, TypeError) as error:
        raise StudentError(f"{directory / RECIPE} is damaged: its plan has no factors") from error
    return {**{k: v for k, v in recipe.items() if k not in _FLAT}, "format": FORMAT, "request": request}


def find_weights(directory: Path, recipe: dict[str, Any]) -> Path | None:
    """The weights that belong to a recipe: under their name, or still waiting for it where a writer was killed."""
    expected = recipe["weights"]["sha256"] if isinstance(recipe["weights"], dict) else None
    for path in (directory / WEIGHTS, directory / WAITING.format(expected)):
        if path.is_file() and checksum(path) == expected:
            return path
    return None


def load_weights(module: nn.Module, directory: Path) -> None:
    """Load the weights of a student folder into ``module``, every key of it.

    Raises:
        StudentError: keys, shapes or kinds of numbers differ, or a value is no number.
    """
    path = find_weights(directory, _read(directory))
    if path is None:
        raise StudentError(f"{directory / WEIGHTS} is damaged; save the student again")
    try:
        _check_values(module, path)
        safetensors.torch.load_model(module, str(path))
    except (RuntimeError, SafetensorError) as error:
        raise StudentError(
            f"the weights in {directory} do not fit the rebuilt student: {reason(error, 300)}"
        ) from error


def _check_values(module: nn.Module, path: Path) -> None:
    """Raise where a tensor is of another kind than the module's, or holds NaN or infinity."""
    expected = module.state_dict()
    with safe_open(str(path), "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            value = file.get_tensor(name)
            if name in expected and value.dtype.is_floating_point != expected[name].dtype.is_floating_point:
                raise StudentError(f"{path}: {name} is {value.dtype}, the student's is {expected[name].dtype}")
            if value.dtype.is_complex or (value.dtype.is_floating_point and not bool(value.isfinite().all())):
                raise StudentError(f"{path}: {name} holds what is no finite real number; train the student again")
