"""Arguments: how a student is called, as plain data in its folder, and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.tracing.call import Built, Slot


def write_arguments(tree: Any) -> Any:
    """The arguments of a call as plain data."""
    if isinstance(tree, Slot):
        return {"tensor": tree.index}
    if isinstance(tree, Built):
        held = {name: write_arguments(value) for name, value in tree.fields.items()}
        return {"object": {"class": _class_name(tree.kind), "fields": held}}
    if isinstance(tree, Mapping):
        return {"dict": {key: write_arguments(value) for key, value in tree.items()}}
    if isinstance(tree, (tuple, list)):
        return {type(tree).__name__: [write_arguments(value) for value in tree]}
    return tree


def read_arguments(data: Any, tensors: Sequence[Tensor], teacher: nn.Module) -> Any:
    """The inverse of ``write_arguments``, with ``tensors`` in their places; ``teacher`` is what is called with them.

    Raises:
        ModelError: a class that the teacher's own code does not name; no other is used.
    """
    if not isinstance(data, dict):
        return data
    ((kind, held),) = data.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: read_arguments(value, tensors, teacher) for key, value in held.items()}
    if kind == "object":
        values = {name: read_arguments(value, tensors, teacher) for name, value in held["fields"].items()}
        return _find_class(held["class"], teacher)(**values)
    return {"tuple": tuple, "list": list}[kind](read_arguments(value, tensors, teacher) for value in held)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find_class(name: str, teacher: nn.Module) -> type:
    """The dataclass of that name among those that the modules' own source files name."""
    for source in dict.fromkeys(type(part).__module__ for part in teacher.modules()):
        for value in vars(sys.modules[source]).values():
            if isinstance(value, type) and is_dataclass(value) and _class_name(value) == name:
                return value
    raise ModelError(f"it is called with a {name}, which the source of {type(teacher).__name__} does not name")
