"""A state dict's keys matched with a model's: wrappers' prefixes off or on, and differences in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from redistill.internal.text import format_shape

State = Mapping[str, Tensor]

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Names that DataParallel, DistributedDataParallel, averaged and compiled modules put into paths."""

_NAMED_AT_MOST = 3
_COUNTER = "num_batches_tracked"
_AVERAGED = "n_averaged"
_COUNTED = ("total_ops", "total_params")
"""What counters of MACs leave in a model that is saved after."""


def rename_to_fit(state: State, expected: State) -> dict[str, Tensor]:
    """The state dict with its keys as the model has them, as far as prefixes go.

    Tried in this order, the first that matches most keys is taken: as it is; without the names that wrappers put into
    paths; without a prefix that all keys share (a training module's ``model.``); under a prefix that all of the model's
    keys share. A counter of batches that the file is too old to have is the model's; counts of MACs are left out.
    """
    found = max(_renamings(state, expected), key=lambda renamed: matches(renamed, expected))
    counters = {key: value for key, value in expected.items() if key not in found and _is_counter_of_norm(key, found)}
    return {key: value for key, value in found.items() if key in expected or not key.endswith(_COUNTED)} | counters


def below(state: State) -> dict[str, dict[str, Tensor]]:
    """What a training module saved of each of its parts, by their names, where there are several."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(part, {})[rest] = value
    return parts if len(parts) > 1 or len(state) > sum(map(len, parts.values())) else {}


def matches(state: State, expected: State) -> int:
    """How many of the model's tensors the state dict has, with their shape."""
    return sum(key in state and state[key].shape == value.shape for key, value in expected.items())


def _renamings(state: State, expected: State) -> Iterator[dict[str, Tensor]]:
    yield dict(state)
    bare = _rename(state, _unwrapped)
    if _AVERAGED not in expected:
        bare.pop(_AVERAGED, None)
    yield bare
    for prefix in _shared_prefixes(bare):
        yield _rename(bare, lambda key, prefix=prefix: key.removeprefix(prefix))  # type: ignore[misc]
    for prefix in _shared_prefixes(expected):
        yield {prefix + key: value for key, value in bare.items()}


def _rename(state: State, change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(key): value for key, value in state.items()}


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _shared_prefixes(keys: Iterable[str]) -> list[str]:
    """``a.``, ``a.b.`` and so on: what all keys begin with."""
    paths = [key.split(".")[:-1] for key in keys]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append((shared[-1] if shared else "") + parts[0] + ".")
    return shared


def _is_counter_of_norm(key: str, state: State) -> bool:
    return key.endswith(_COUNTER) and key.removesuffix(_COUNTER) + "running_mean" in state


def describe_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What keeps a state dict from fitting: other shapes, missing and unexpected keys, each with the nearest key."""
    missing = sorted((key for key in expected if key not in found), key=lambda key: key.endswith(_COUNTER))
    unexpected = [key for key in found if key not in expected]
    both = [(key, found[key], value) for key, value in expected.items() if key in found]
    reshaped = [
        f"{key} is {_shape(given)} in the file, {_shape(value)} in the model"
        for key, given, value in both
        if _shape(given) != _shape(value)
    ]
    retyped = [
        f"{key} is {given.dtype} in the file, {value.dtype} in the model"
        for key, given, value in both
        if isinstance(given, Tensor) and isinstance(value, Tensor) and _loses(given, value)
    ]
    parts = [
        _shorten(reshaped, "different shape") if reshaped else "",
        _shorten(retyped, "different type") if retyped else "",
        f"missing {_shorten(_with_nearest(missing, unexpected, 'the file'), 'key')}" if missing else "",
        f"unexpected {_shorten(_with_nearest(unexpected, missing, 'the model'), 'key')}" if unexpected else "",
    ]
    return "; ".join(filter(None, parts))


def _loses(given: Tensor, value: Tensor) -> bool:
    """Whether numbers of one type would mean something else in another: quantised or complex ones as plain floats."""
    return value.is_floating_point() and not given.is_floating_point()


def _with_nearest(keys: list[str], others: list[str], owner: str) -> list[str]:
    """The keys that will be named, each with what it may be called on the other side."""
    named = []
    for key in keys[:_NAMED_AT_MOST]:
        nearest = get_close_matches(key, others, n=1)
        named.append(f"{key} (nearest in {owner}: {nearest[0]})" if nearest else key)
    return [*named, *keys[_NAMED_AT_MOST:]]


def _shorten(items: list[str], noun: str) -> str:
    rest = len(items) - _NAMED_AT_MOST
    return ", ".join(items[:_NAMED_AT_MOST]) + (f" and {rest} more {noun}{'s' * (rest > 1)}" if rest > 0 else "")


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else format_shape(shape)
