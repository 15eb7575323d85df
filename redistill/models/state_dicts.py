"""State dicts in the files that people have: read without running a pickle, wherever in the file they lie."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redistill.errors import ModelError
from redistill.internal.documents import read_json
from redistill.internal.suggestions import suggest

StateDict = dict[str, Tensor]

_DEPTH = 2
"""How deep in nested dictionaries a state dict is looked for: ``checkpoint["state"]["model"]`` is found."""

_NUMPY = (np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"})
_HEAD = 64
"""Bytes by which a file is told."""
_INDEX = 1 << 26
"""The most bytes of an index of shards."""


def read_state_dicts(path: Path) -> dict[str, StateDict]:
    """Read all state dicts of a file by the keys that lead there, "" for a bare one.

    The file is safetensors', torch's, or an index (``*.index.json``) of several of either. Nothing in it is executed:
    beside tensors and plain values only a training script's options (``argparse.Namespace``, paths) and numpy's numbers
    are read.

    Raises:
        ModelError: a file that cannot be read so, or one without tensors by name.
    """
    try:
        content = _read(path)
    except Exception as error:
        raise ModelError(
            f"cannot read weights from {path} ({_reason(error, path)}); save model.state_dict() alone"
        ) from error
    found = dict(_search(content, "", _DEPTH))
    if not found:
        raise ModelError(f"{path} holds no state dict; save model.state_dict(), bare or in a dictionary")
    return found


def pick(found: Mapping[str, StateDict], key: str, path: Path) -> StateDict:
    """The state dict under that key.

    Raises:
        ModelError: there is none; the nearest is named.
    """
    if key not in found:
        raise ModelError(f"{path} holds no state dict under {key!r}{suggest(key, found)}")
    return found[key]


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return _read_shards(path)
    if _is_safetensors(_head(path)):
        from safetensors.torch import load_file

        return load_file(path)
    paths = [(PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]
    harmless: list[Any] = [argparse.Namespace, *_NUMPY, *_numpy_builders(), *paths]
    with torch.serialization.safe_globals(harmless), path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_shards(path: Path) -> StateDict:
    """The tensors of all files that an index names; they lie beside it."""
    index = read_json(path, ModelError, _INDEX)
    names = set(index["weight_map"].values())
    if not all(isinstance(name, str) and Path(name).name == name and not name.endswith(".json") for name in names):
        raise ValueError(f"{path} names files elsewhere")
    return {key: value for name in sorted(names) for key, value in _read(path.with_name(name)).items()}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of a length, then the brace of a JSON object."""
    return head[8:9] == b"{"


def _numpy_builders() -> Iterator[Any]:
    """What numpy writes for a number or an array, under the names of its first and second version."""
    multiarray: Any = (getattr(np, "_core", None) or np.core).multiarray
    for name in ("scalar", "_reconstruct"):
        builder = getattr(multiarray, name)
        yield builder
        yield builder, f"numpy.core.multiarray.{name}"


def _search(content: Any, place: str, depth: int) -> Iterator[tuple[str, StateDict]]:
    """Mappings whose keys are words and some of whose values are tensors, the outermost first."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items() if depth else ():
        yield from _search(value, f"{place}.{key}" if place else str(key), depth - 1)


def _reason(error: Exception, path: Path) -> str:
    """What stopped the reader, in a few words: the class that it refused to make, or what the file is instead."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return f"it holds a {refused[1]}, which would be run"
    if isinstance(error, ModelError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"there is no {Path(error.filename or path).name} beside it"
    return _kind(path) or type(error).__name__


def _kind(path: Path) -> str:
    """What a file without readable weights is."""
    head = _head(path)
    known = {
        "it is empty": not head,
        "it is a pointer of Git LFS; git lfs pull fetches the file": head.startswith(b"version https://git-lfs"),
        "it is a web page": head.lstrip().startswith(b"<"),
        "it is TorchScript": _is_script(path),
        "it is cut short or damaged": (head.startswith(b"PK") and not zipfile.is_zipfile(path))
        or _is_safetensors(head),
        "it is no index of weights": path.suffix == ".json",
        "it is no file of torch or safetensors": not zipfile.is_zipfile(path),
    }
    return next((kind for kind, holds in known.items() if holds), "")


def _is_script(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any("constants.pkl" in name for name in zipfile.ZipFile(path).namelist())
