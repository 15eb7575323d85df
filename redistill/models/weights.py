"""Where a model's weights come from, and how a file of them is loaded: strictly, and never by running its pickle."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.internal.reasons import reason
from redistill.models.matching import below, describe_differences, matches, rename_to_fit
from redistill.models.providers import find_torchvision_builder, import_package
from redistill.models.specs import ModelSpec
from redistill.models.state_dicts import StateDict, pick, read_state_dicts

KEY = "?key="
"""Between a file and the state dict in it that is meant: ``net.pth.tar?key=state_dict_ema``."""

logger = logging.getLogger(__name__)

_PROVIDERS_WITH_WEIGHTS = ("torchvision", "timm")


@dataclass(frozen=True)
class WeightSource:
    """The origin of a model's weights.

    Attributes:
        kind: ``random``; ``file``; ``cached``, the provider's file that lies here already; ``pretrained``, the
            provider's own, fetched if need be.
        label: what to tell the user.
        pretrained: what the provider's builder is told (torchvision: a member of its weights), None for no weights.
        path: the file to load, for kind ``file``.
        key: where in the file the state dict lies; by default it is searched for.
    """

    kind: Literal["random", "file", "cached", "pretrained"]
    label: str
    pretrained: str | None = None
    path: Path | None = None
    key: str | None = None


_RANDOM = WeightSource("random", "random initialisation")


def choose_weights(spec: ModelSpec, weights: str | os.PathLike[str] | None) -> WeightSource:
    """Decide the source of the weights: nothing is read or fetched yet.

    ``weights`` None takes torchvision's checkpoint if it is in torch.hub's folder already and the spec changes nothing
    by keywords, else random initialisation; ``"random"`` insists on that; ``"pretrained"`` asks for the provider's own.
    A file may be followed by ``?key=NAME``: which of several state dicts in it is meant.

    Raises:
        ModelError: a file that does not exist, or a provider without weights of its own.
    """
    if weights is None:
        return (spec.provider == "torchvision" and _find_cached(spec)) or _RANDOM
    if weights == "random":
        return _RANDOM
    if weights == "pretrained":
        return _choose_pretrained(spec)
    path, key = split_key(weights)
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the file of weights in it")
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give a .safetensors or torch file, 'pretrained' or 'random'")
    return WeightSource("file", str(path) if key is None else f"{path}{KEY}{key}", path=path, key=key)


def split_key(weights: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """A file of weights and, after ``?key=``, where in it they lie."""
    place, _, key = os.fspath(weights).partition(KEY)
    return Path(place).expanduser(), key or None


def _choose_pretrained(spec: ModelSpec) -> WeightSource:
    if spec.provider not in _PROVIDERS_WITH_WEIGHTS:
        raise ModelError(f"{spec.target} has no pretrained weights to fetch; give the path of a weights file")
    cached = _find_cached(spec) if spec.provider == "torchvision" else None
    return cached or WeightSource("pretrained", f"{spec.provider} DEFAULT", pretrained="DEFAULT")


def _find_cached(spec: ModelSpec) -> WeightSource | None:
    """torchvision's checkpoint in torch.hub's folder: its default first, then any other of the same model."""
    builder = find_torchvision_builder(spec)
    if spec.arguments:
        return None
    members = import_package("torchvision.models").get_model_weights(builder)
    default = getattr(members, "DEFAULT", None)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for member in sorted(members, key=lambda member: member is not default):
        if (folder / Path(urlparse(member.url).path).name).is_file():
            return WeightSource("cached", f"torchvision {member.name} (cached)", pretrained=member.name)
    return None


def load_weights(model: nn.Module, path: Path, target: str, key: str | None = None) -> None:
    """Load the state dict in ``path`` into ``model``, strictly; ``target`` names the model in errors.

    Of several state dicts in a file the one that fits best is taken, before averaged (EMA) weights that fit as well;
    ``key`` names another. Prefixes come off by themselves, see :func:`redistill.models.matching.rename_to_fit`, also of
    one part of a training module that saved further ones, such as its loss.

    Raises:
        ModelError: a file that cannot be read as weights, keys or shapes that differ, or values that are no numbers.
    """
    found, expected = read_state_dicts(path), model.state_dict()
    fitted = {place: rename_to_fit(state, expected) for place, state in found.items()}
    parts = {f"{place}.{name}".lstrip("."): part for place in found for name, part in below(found[place]).items()}
    if key in parts or not any(_mostly(state, expected) for state in fitted.values()):
        renamed = {place: rename_to_fit(state, expected) for place, state in parts.items()}
        fitted |= {place: state for place, state in renamed.items() if place == key or _mostly(state, expected)}
    if key is None:
        key = max(sorted(fitted, key=_is_averaged), key=lambda place: matches(fitted[place], expected))
        _mention_others(path, key, fitted, expected)
    state = _with_second_names(pick(fitted, key, path), expected)
    differences = describe_differences(expected, state)
    if differences:
        raise ModelError(f"{path} does not fit {target}: {differences}; give that model's own weights")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # tensors that are sparse, or have no values
        raise ModelError(f"{path} does not fit {target}: {reason(error, 300)}") from error
    _check_numbers(model, path)


def _mostly(state: StateDict, expected: Mapping[str, Tensor]) -> bool:
    return 2 * matches(state, expected) > len(expected)


def _check_numbers(model: nn.Module, path: Path) -> None:
    """Refuse parameters that are not finite, and buffers that are no numbers; masks may be infinite."""
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    broken += [name for name, value in model.named_buffers() if value.is_floating_point() and value.isnan().any()]
    if broken:
        rest = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"{path} holds values that are no finite numbers, in {broken[0]}{rest}; its training diverged")


def _is_averaged(place: str) -> bool:
    return "ema" in place.lower() or "average" in place.lower()


def _mention_others(path: Path, key: str, fitted: Mapping[str, StateDict], expected: Mapping[str, Tensor]) -> None:
    """Say where a file holds further weights that fit, since figures may be of those."""
    others = [place for place, state in fitted.items() if place != key and not describe_differences(expected, state)]
    if others:
        logger.info("%s: took %r; %s fit too, as %s%s%s", path, key, ", ".join(others), path.name, KEY, others[0])


def _with_second_names(state: StateDict, expected: Mapping[str, Tensor]) -> StateDict:
    """The state dict with what the model has under two names, where the file has it under one."""
    names: dict[tuple[int, torch.Size], str] = {}
    for name, value in expected.items():
        if name in state:
            names.setdefault((value.data_ptr(), value.shape), name)
    places = {name: (value.data_ptr(), value.shape) for name, value in expected.items() if value.numel()}
    return state | {name: state[names[at]] for name, at in places.items() if name not in state and at in names}
