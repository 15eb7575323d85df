"""A state as files that run nothing: tensors as safetensors, all else as JSON."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from redistill.errors import CheckpointError
from redistill.internal.documents import read_json

PLAIN, TENSORS = "state.json", "state.safetensors"
MARK = "tensor"
LARGEST = 1 << 28
"""Bytes of the plain part."""

Tree = Any
"""Mappings with text as keys and lists, of tensors, numbers, text, true, false and None."""


def write_state(folder: Path, tree: Tree) -> None:
    """Write a tree to two files in a folder.

    Raises:
        CheckpointError: something that is neither a tensor nor plain data.
        OSError: the disk.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, "state", tensors)
    (folder / PLAIN).write_text(json.dumps(plain))
    (folder / TENSORS).write_bytes(save(_apart(tensors)))


def read_state(folder: Path) -> Tree:
    """The tree that was written, its tensors on the CPU.

    Raises:
        CheckpointError: the files are damaged.
    """
    plain = read_json(folder / PLAIN, CheckpointError, LARGEST)
    try:
        return _unpack(plain, load_file(folder / TENSORS))
    except Exception as error:
        raise CheckpointError(f"{folder} is damaged: {' '.join(str(error).split())[:120]}") from error


def module_state(module: nn.Module) -> Tree:
    """A module's weights and buffers, and the versions by which some modules read them."""
    state = module.state_dict()
    return {"values": dict(state), "versions": dict(getattr(state, "_metadata", {}))}


def load_module_state(module: nn.Module, tree: Tree) -> None:
    """Give them back: without its version, an observer of ranges takes its own for an old one and resets a part."""
    state = OrderedDict(tree["values"])
    state._metadata = tree["versions"]  # type: ignore[attr-defined]  # where torch itself keeps them
    module.load_state_dict(state)


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """What an optimizer has gathered, one entry a parameter; its settings are the configuration's."""
    return [[index, dict(values)] for index, values in optimizer.state_dict()["state"].items()]


def load_optimizer_state(optimizer: torch.optim.Optimizer, tree: Tree) -> None:
    """Give it back, laid out in memory as its parameters: a step's last bits depend on that."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {int(index): values for index, values in tree}, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights and buffers: names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()


def _pack(value: Tree, place: str, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(value, Tensor):
        tensors[place] = value
        return {MARK: place}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_pack(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{place} is a {type(value).__name__}, which no checkpoint holds; keep tensors or numbers")


def _unpack(value: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(value, dict):
        return tensors[value[MARK]] if MARK in value else {key: _unpack(item, tensors) for key, item in value["items"]}
    return [_unpack(item, tensors) for item in value] if isinstance(value, list) else value


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own: safetensors refuses what is shared, such as tied weights."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return apart
