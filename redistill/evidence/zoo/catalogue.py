"""The networks of the zoo, by library: their specs and what they take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.models import default_input_shapes, example_inputs, load_model

LARGEST_SIDE = 224
"""Default inputs are cut down to this where the network takes other sizes than its own."""
_PACKAGES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "ultralytics": "ultralytics",
    "pytorchcv": "pytorchcv",
    "monai": "monai",
    "kornia": "kornia",
}


@dataclass(frozen=True)
class Entry:
    """One network: its library, its spec and, where they are not the model's default, its inputs.

    Inputs are written ``1x3x64x64 i1 mask=1x1x64x64 [3x64x64]``: shapes of normally distributed tensors, after ``i``
    of whole numbers, after ``name=`` given by keyword, in brackets as a list.
    """

    library: str
    spec: str
    inputs: str = ""

    @property
    def name(self) -> str:
        """The spec without the library."""
        return re.sub(r"^[\w.]+:", "", self.spec)


def libraries() -> tuple[str, ...]:
    """The libraries of the zoo, installed or not."""
    return tuple(_PACKAGES)


def is_installed(library: str) -> bool:
    """Whether the library can be imported here."""
    return find_spec(_PACKAGES[library]) is not None


def package_of(library: str) -> str:
    """The name a library is imported by."""
    return _PACKAGES[library]


def entries(library: str) -> Iterator[Entry]:
    """The networks of one library."""
    text = (files("redistill.evidence.zoo") / "networks" / f"{library}.yaml").read_text()
    for line in yaml.safe_load(text):
        spec, inputs = next(iter(line.items())) if isinstance(line, dict) else (line, "")
        yield Entry(library, spec, inputs)


def build(entry: Entry) -> tuple[nn.Module, Any]:
    """The network with random weights, the same at each call, and an example of what it takes."""
    torch.manual_seed(0)
    model = load_model(entry.spec, "random")
    return model, read_inputs(entry.inputs) if entry.inputs else _default_inputs(entry, model)


def _default_inputs(entry: Entry, model: nn.Module) -> tuple[Tensor, ...]:
    shapes = default_input_shapes(entry.spec, model)
    if not getattr(model, "pretrained_cfg", {}).get("fixed_input_size", False):
        shapes = tuple((c, *(min(side, LARGEST_SIDE) for side in sides)) for c, *sides in shapes)
    return example_inputs(entry.spec, model, shapes)


def read_inputs(text: str) -> Any:
    """Example inputs from text, normally distributed: a tuple, or a mapping if they go by keyword.

    Raises:
        ModelError: text that cannot be read.
    """
    generator = torch.Generator().manual_seed(0)
    words = [re.fullmatch(r"(?:(\w+)=)?(\[?)(i?)([\dx]+)\]?", word) for word in text.split()]
    if not all(words):
        raise ModelError(f"cannot read the inputs {text!r}; write for example 1x3x64x64 i1 mask=1x1x64x64")
    values = [(match[1], _tensor(match, generator)) for match in words if match]
    keywords = {name: value for name, value in values if name}
    return keywords if keywords else tuple(value for _, value in values)


def _tensor(match: re.Match[str], generator: torch.Generator) -> Any:
    shape = [int(side) for side in match[4].split("x")]
    whole = bool(match[3])
    tensor = torch.randint(2, shape, generator=generator) if whole else torch.randn(shape, generator=generator)
    return [tensor] if match[2] else tensor


def select(chosen: Sequence[str], pattern: str | None, limit: int | None) -> list[Entry]:
    """The networks to try: of the libraries ``chosen`` (all if none), whose spec matches ``pattern``, ``limit`` each.

    Raises:
        ModelError: an unknown library.
    """
    unknown = [name for name in chosen if name not in _PACKAGES]
    if unknown:
        raise ModelError(f"the zoo has no library {', '.join(unknown)}; it has {', '.join(_PACKAGES)}")
    found: list[Entry] = []
    for library in chosen or libraries():
        matching = [e for e in entries(library) if pattern is None or re.search(pattern, e.spec)]
        found += matching[:limit]
    return found
