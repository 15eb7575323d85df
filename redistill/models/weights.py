"""Where a model's weights come from, and how a file of them is loaded: strictly, and never by running its pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.internal.text import format_shape
from redistill.models.providers import find_torchvision_builder, import_package
from redistill.models.specs import ModelSpec

_NAMED_AT_MOST = 3
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
    """

    kind: Literal["random", "file", "cached", "pretrained"]
    label: str
    pretrained: str | None = None
    path: Path | None = None


_RANDOM = WeightSource("random", "random initialisation")


def choose_weights(spec: ModelSpec, weights: str | os.PathLike[str] | None) -> WeightSource:
    """Decide the source of the weights: nothing is read or fetched yet.

    ``weights`` None takes torchvision's checkpoint if it is in torch.hub's folder already and the spec changes nothing
    by keywords, else random initialisation; ``"random"`` insists on that; ``"pretrained"`` asks for the provider's own.

    Raises:
        ModelError: a file that does not exist, or a provider without weights of its own.
    """
    if weights is None:
        return (spec.provider == "torchvision" and _find_cached(spec)) or _RANDOM
    if weights == "random":
        return _RANDOM
    if weights == "pretrained":
        return _choose_pretrained(spec)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give a .safetensors or torch file, 'pretrained' or 'random'")
    return WeightSource("file", str(path), path=path)


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


def load_weights(model: nn.Module, path: Path, target: str) -> None:
    """Load the state dict in ``path`` into ``model``, strictly; ``target`` names the model in errors.

    A diffusers model's own file fits its wrapper too: the prefix ``model.`` is added where it is missing.

    Raises:
        ModelError: a file that cannot be read as weights, or keys or shapes that differ.
    """
    state = read_state_dict(path)
    expected = model.state_dict()
    if not expected.keys() & state.keys():
        prefixed = {f"model.{key}": value for key, value in state.items()}
        state = prefixed if expected.keys() & prefixed.keys() else state
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differences = _describe_differences(expected, state) or "the state dict was refused"
        raise ModelError(f"{path} does not fit {target}: {differences}; give that model's own weights") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` or torch file: a state dict, bare or under ``state_dict`` or ``model``.

    Raises:
        ModelError: not such a file.
    """
    try:
        content = _read(path)
    except Exception as error:
        raise ModelError(
            f"cannot read weights from {path} ({type(error).__name__}); save model.state_dict() and nothing else in it"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict; save model.state_dict(), bare or under 'state_dict' or 'model'")
    return dict(content)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _describe_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    reshaped = [
        f"{key} is {_shape(found[key])} in the file, {_shape(value)} in the model"
        for key, value in expected.items()
        if key in found and _shape(found[key]) != _shape(value)
    ]
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    parts = [_shorten(reshaped, "different shape", ", ")] if reshaped else []
    parts += [f"missing {_shorten(missing, 'key')}"] if missing else []
    parts += [f"unexpected {_shorten(unexpected, 'key')}"] if unexpected else []
    return "; ".join(parts)


def _shorten(items: list[str], noun: str, separator: str = ", ") -> str:
    rest = len(items) - _NAMED_AT_MOST
    return separator.join(items[:_NAMED_AT_MOST]) + (f" and {rest} more {noun}{'s' * (rest > 1)}" if rest > 0 else "")


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else format_shape(shape)
