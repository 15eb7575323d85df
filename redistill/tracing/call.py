"""Calls: how a module is called and what it returns, so that graphs deal in tensors alone.

A graph takes the tensors among a teacher's arguments, one placeholder each, and returns tensors in plain tuples, lists
and dicts. A call knows the way there and back: which argument each tensor stands in (within lists and dicts too), which
values beside tensors the graph was made for, and of which class the output is.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    GetAttrKey,
    keystr,
    register_pytree_node,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

from redistill.errors import ModelError

_PLAIN = (int, float, str, type(None))
_AS_TUPLE = "return_dict"
"""The argument by which classes of outputs are asked for, or plain tuples, in transformers and diffusers."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor stands: its place among the tensors of a call."""

    index: int


@dataclass(frozen=True)
class Built:
    """A value of a class of its own, an argument or an output, and what its fields hold."""

    kind: type
    fields: Mapping[str, Any]


register_pytree_node(
    Built,
    lambda built: (list(built.fields.values()), (built.kind, tuple(built.fields))),
    lambda values, context: Built(context[0], dict(zip(context[1], values, strict=True))),
    flatten_with_keys_fn=lambda built: (
        [(GetAttrKey(name), value) for name, value in built.fields.items()],
        (built.kind, tuple(built.fields)),
    ),
)


@dataclass(frozen=True)
class Call:
    """How a module is called.

    Attributes:
        arguments: by parameter: a ``Slot`` for each tensor, within lists, tuples and dicts as they were given; all else
            is a constant of the graph.
        signature: of the module's forward.
        names: one for each tensor.
        result: the output's classes, None where it is plain.
    """

    arguments: Mapping[str, Any]
    signature: inspect.Signature
    names: tuple[str, ...]
    result: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether a graph's own forward takes and returns the very same."""
        takes = list(self.arguments) == list(self.signature.parameters)
        return takes and all(isinstance(a, Slot) for a in self.arguments.values()) and self.result is None

    def example(self, tensors: Sequence[Any]) -> dict[str, Any]:
        """The arguments with ``tensors`` in their places, by parameter."""
        found: dict[str, Any] = tree_map_only(Slot, lambda slot: tensors[slot.index], dict(self.arguments))
        return {name: _instances(value) for name, value in found.items()}

    def run(self, function: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """Call ``function`` with ``tensors`` in their places."""
        bound = inspect.BoundArguments(self.signature, self.example(tensors))
        return function(*bound.args, **bound.kwargs)

    def read(self, given: Mapping[str, Any]) -> list[Tensor]:
        """The tensors among the module's own arguments, given by parameter.

        Raises:
            ModelError: arguments that the graph was not made for.
        """
        tensors: list[Any] = [None] * len(self.names)
        for name, expected in self.arguments.items():
            value = given.get(name, _default(self.signature.parameters[name]))
            self._match(name, expected, _without_classes(value), tensors)
        for name in given.keys() - self.arguments.keys() - {_AS_TUPLE}:
            if not _same(given[name], _default(self.signature.parameters[name])):
                raise ModelError(f"{name} was not given when the graph was made; give it in the example input as well")
        return [x if isinstance(x, Tensor) else _as_tensor(x, tensors) for x in tensors]

    def _match(self, name: str, expected: Any, value: Any, tensors: list[Any]) -> None:
        if isinstance(expected, Slot):
            if not isinstance(value, (Tensor, int, float)) or isinstance(value, bool):
                raise ModelError(f"{name} is {_kind(value)}; the graph was made for a tensor there")
            tensors[expected.index] = value
            return
        (wanted, form), (leaves, found) = tree_flatten(expected), tree_flatten(value)
        if form != found:
            raise ModelError(f"{name} has another form than in the example input: {found}, not {form}")
        if not wanted or form.is_leaf():
            if name != _AS_TUPLE and not _same(value, expected):
                raise ModelError(f"{name} is {value!r}; the graph was made for {expected!r}")
            return
        for index, (one, other) in enumerate(zip(wanted, leaves, strict=True)):
            self._match(f"{name}[{index}]", one, other, tensors)

    def wrap(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that takes and returns what the module's does, from one over tensors."""

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            given = _bind(self.signature, args, kwargs)
            output = build(self.result, forward(module, *self.read(given)))
            as_tuple = given.get(_AS_TUPLE) is False and hasattr(output, "to_tuple")
            return output.to_tuple() if as_tuple else output

        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        call.__signature__ = inspect.Signature([itself, *self.signature.parameters.values()])  # type: ignore[attr-defined]
        return call

    def trace(self, function: Callable[..., Any], tensors: Sequence[Any]) -> tuple[Any, Any]:
        """Call ``function``; its output in plain containers, and the classes that were there (None: none)."""
        output = self.run(function, tensors)
        plain, result = take_apart(output)
        return plain, result if _has_class(result) else None


def read_call(module: nn.Module, example: Any) -> tuple[Call, tuple[Tensor, ...]]:
    """How ``module`` is called with ``example``, and the tensors of it.

    Args:
        module: any module; not run.
        example: a tensor, a tuple or list of arguments, or a mapping of arguments by keyword.

    Raises:
        ModelError: an example without a tensor, with values of another kind, or that the forward does not take.
    """
    example = _without_classes(example)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(example)):
        raise ModelError(
            f"the example input holds no tensor, it is {_kind(example)}; give a tensor, a tuple of arguments (a list "
            "that is one argument as ([a, b],)) or a dict of keyword arguments"
        )
    for leaf in tree_leaves(example):
        if isinstance(leaf, Tensor) and not leaf.numel():
            raise ModelError(f"the example input {tuple(leaf.shape)} is empty; give a batch of 1 or more")
    signature = signature_of(module)
    try:
        bound = _bind_example(signature, example)
    except TypeError as error:
        raise ModelError(
            f"the example input does not fit {type(module).__name__}.forward{signature}: {error}"
        ) from None
    tensors: list[Tensor] = []
    names: list[str] = []
    leaves, spec = tree_flatten_with_path(bound)
    found = [_slot(path, leaf, tensors, names) for path, leaf in leaves]
    return Call(tree_unflatten(found, spec), signature, tuple(names)), tuple(tensors)


def _bind_example(signature: inspect.Signature, example: Any) -> dict[str, Any]:
    if not isinstance(example, Mapping):
        return dict(signature.bind(*(example if isinstance(example, (tuple, list)) else (example,))).arguments)
    known = {name: value for name, value in example.items() if name in signature.parameters}
    bound = inspect.BoundArguments(signature, known)
    others = {name: value for name, value in example.items() if name not in known}
    return dict(signature.bind(*bound.args, **bound.kwargs, **others).arguments)


class OverTensors(nn.Module):
    """A module called as its graph is: with tensors alone, its output in plain tuples, lists and dicts."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        """Call the module with the tensors in their places."""
        return take_apart(self.call.run(self.module, tensors))[0]


def signature_of(module: nn.Module) -> inspect.Signature:
    """The signature of the module's forward, without ``self`` and without annotations, which may be of any kind."""
    found = inspect.signature(module.forward)
    empty = inspect.Parameter.empty
    return inspect.Signature([p.replace(annotation=empty) for p in found.parameters.values()])


def _slot(path: Any, leaf: Any, tensors: list[Tensor], names: list[str]) -> Any:
    words = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    if isinstance(leaf, Tensor):
        tensors.append(leaf)
        names.append("_".join("".join(c if c.isalnum() else "_" for c in word) for word in words))
        return Slot(len(tensors) - 1)
    if not isinstance(leaf, _PLAIN):
        raise ModelError(
            f"{words[0]}{keystr(path[1:])} of the example input is {_kind(leaf)}; give tensors, numbers, text or None, "
            "in tuples, lists, dicts and dataclasses"
        )
    return leaf


def _bind(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by parameter."""
    try:
        return dict(signature.bind_partial(*args, **kwargs).arguments)
    except TypeError as error:
        raise ModelError(f"forward{signature} does not take this call: {error}") from None


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return ()
    return {} if parameter.kind is parameter.VAR_KEYWORD else parameter.default


def _as_tensor(value: Any, tensors: Sequence[Any]) -> Tensor:
    """A number where the graph takes a tensor: a timestep, a scale."""
    device = next((x.device for x in tensors if isinstance(x, Tensor)), None)
    return torch.as_tensor(value, device=device)


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    return not isinstance(value, Tensor) and not isinstance(other, Tensor) and bool(value == other)


def _kind(value: Any) -> str:
    return "missing" if value is inspect.Parameter.empty else f"a {type(value).__name__}"


def _without_classes(value: Any) -> Any:
    """Arguments with a ``Built`` for each dataclass."""
    if is_dataclass(value) and not isinstance(value, (type, Tensor, Built)):
        held = {f.name: _without_classes(getattr(value, f.name)) for f in fields(value) if f.init}
        return Built(type(value), held)
    parts = isinstance(value, (tuple, list, dict)) and not hasattr(value, "_fields")
    return tree_map(_without_classes, value, is_leaf=lambda v: v is not value) if parts else value


def _instances(value: Any) -> Any:
    """The inverse of ``_without_classes``."""

    def instance(leaf: Any) -> Any:
        if not isinstance(leaf, Built):
            return leaf
        return leaf.kind(**{name: _instances(held) for name, held in leaf.fields.items()})

    return tree_map(instance, value, is_leaf=lambda v: isinstance(v, Built))


def take_apart(output: Any) -> tuple[Any, Any]:
    """An output in plain tuples, lists and dicts, and the same with the classes that were there in place of tensors."""
    if is_dataclass(output) and not isinstance(output, (type, Tensor)):
        parts = {f.name: take_apart(getattr(output, f.name)) for f in fields(output) if f.init}
        plain = {name: value for name, value in _firsts(parts).items() if value is not None}
        return plain, Built(type(output), {name: second for name, (_, second) in parts.items()})
    if isinstance(output, Mapping):
        parts = {key: take_apart(value) for key, value in output.items()}
        seconds = {key: second for key, (_, second) in parts.items()}
        ordered = type(output) is OrderedDict and all(isinstance(key, str) for key in output)
        return _firsts(parts), Built(OrderedDict, seconds) if ordered else seconds
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        pairs = [take_apart(value) for value in output]
        kind = list if isinstance(output, list) else tuple
        return kind(first for first, _ in pairs), kind(second for _, second in pairs)
    return output, None


def build(result: Any, output: Any) -> Any:
    """The inverse of ``take_apart``."""
    if isinstance(result, Built):
        return result.kind(**{name: build(part, output.get(name)) for name, part in result.fields.items()})
    if isinstance(result, dict):
        return {key: build(part, output[key]) for key, part in result.items()}
    if isinstance(result, (tuple, list)):
        return type(result)(build(part, value) for part, value in zip(result, output, strict=True))
    return output


def _firsts(parts: Mapping[Any, tuple[Any, Any]]) -> dict[Any, Any]:
    return {key: first for key, (first, _) in parts.items()}


def _has_class(result: Any) -> bool:
    if isinstance(result, dict):
        return any(map(_has_class, result.values()))
    return isinstance(result, Built) or (isinstance(result, (tuple, list)) and any(map(_has_class, result)))
