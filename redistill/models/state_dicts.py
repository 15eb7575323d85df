"""State dicts in the files that people have: read without running a pickle, wherever in the file they lie."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redistill.errors import ModelError
from redistill.internal.suggestions import suggest

StateDict = dict[str, Tensor]

_DEPTH = 2
"""How deep in nested dictionaries a state dict is looked for: ``checkpoint["state"]["model"]`` is found."""

_NUMPY = (np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")})


def read_state_dicts(path: Path) -> dict[str, StateDict]:
    """Read all state dicts of a ``.safetensors`` or torch file by the keys that lead there, "" for a bare one.

    Nothing in the file is executed: beside tensors and plain values only a training script's options
    (``argparse.Namespace``) and numpy's numbers are read.

    Raises:
        ModelError: a file that cannot be read so, or one without tensors by name.
    """
    try:
        content = _read(path)
    except Exception as error:
        raise ModelError(
            f"cannot read weights from {path} ({_reason(error)}); save model.state_dict() alone"
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
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    harmless: list[Any] = [argparse.Namespace, *_NUMPY, *_numpy_builders()]
    with torch.serialization.safe_globals(harmless):
        return torch.load(path, map_location="cpu", weights_only=True)


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


def _reason(error: Exception) -> str:
    """What stopped the reader, in a few words: the class that it refused to make, where that was it."""
    refused = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
    return f"it holds a {refused[1]}, which would be run" if refused else type(error).__name__
