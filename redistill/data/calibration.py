"""Calibration images: a folder of pictures, prepared as a network was taught to see them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from redistill.data.cache import decode_all
from redistill.data.folders import pictures_below
from redistill.data.pictures import MODES
from redistill.errors import DataError, ModelError
from redistill.models.providers import find_torchvision_builder, import_package
from redistill.models.specs import parse_spec


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an input.

    Attributes:
        resize: the shorter side before the central crop of the input's size; None: 8/7 of the input's shorter side.
        mean: what is subtracted from each channel of [0, 1].
        std: what it is divided by then.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"


def find_preparation(spec: str, model: nn.Module) -> Preparation:
    """Find what the model's provider says of its preprocessing; by default that of ImageNet."""
    parsed = parse_spec(spec)
    if parsed.provider == "torchvision":
        return _of_torchvision(find_torchvision_builder(parsed))
    if parsed.provider == "timm":
        found = import_package("timm.data").resolve_model_data_config(model)
        side = round(min(found["input_size"][1:]) / found["crop_pct"])
        kind = "bicubic" if found["interpolation"] == "bicubic" else "bilinear"
        return Preparation(side, tuple(found["mean"]), tuple(found["std"]), kind)
    return Preparation()


def _of_torchvision(builder: Callable[..., Any]) -> Preparation:
    members = import_package("torchvision.models").get_model_weights(builder)
    default = getattr(members, "DEFAULT", None)
    found: Any = default.transforms() if default is not None else None
    if not hasattr(found, "mean"):
        return Preparation()
    resize = getattr(found, "resize_size", None)
    side = min(resize) if isinstance(resize, (list, tuple)) else resize
    return Preparation(side, tuple(found.mean), tuple(found.std), str(found.interpolation.value))


def read_calibration(folder: str | Path, example: Tensor, preparation: Preparation, limit: int = 256) -> Tensor:
    """Read pictures of a folder and below as inputs (N, C, H, W) like ``example``, evenly spread over the files.

    Raises:
        DataError: no folder, no pictures, or one that cannot be read.
        ModelError: the network does not take pictures.
    """
    if folder == "":
        raise DataError("the folder of calibration pictures has no name")
    if example.dim() != 4 or example.shape[1] not in (1, 3):
        raise ModelError(
            f"pictures have one or three channels, the input is {tuple(example.shape)}; give tensors instead"
        )
    files = pictures_below(Path(folder))
    if not files:
        raise DataError(f"no pictures in {folder}; give a folder with pictures in it or below")
    drawn = [files[index * len(files) // limit] for index in range(limit)] if len(files) > limit else files
    pictures = decode_all(drawn, int(example.shape[1]), _transform(example, preparation))
    return torch.stack(pictures).to(example.dtype)


def _transform(example: Tensor, preparation: Preparation) -> v2.Compose:
    height, width = example.shape[2:]
    side = preparation.resize or round(min(height, width) * 8 / 7)
    side = max(side, height, width)
    channels = int(example.shape[1])
    mean, std = (
        list(v) if len(v) == channels else [sum(v) / len(v)] * channels for v in (preparation.mean, preparation.std)
    )
    kind = v2.InterpolationMode(preparation.interpolation)
    return v2.Compose([
        v2.Resize(side, kind, antialias=True), v2.CenterCrop((height, width)),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std),
    ])  # fmt: skip


def override(preparation: Preparation, resize: int | None, mean: str | None, std: str | None) -> Preparation:
    """Put what the user says in place of what is known; numbers separated by commas.

    Raises:
        DataError: not numbers, or a deviation that is not above zero.
    """
    changes: dict[str, object] = {} if resize is None else {"resize": resize}
    changes |= {name: _numbers(name, text) for name, text in (("mean", mean), ("std", std)) if text is not None}
    changed = replace(preparation, **changes)  # type: ignore[arg-type]
    if min(changed.std) <= 0:
        raise DataError(f"std must be above zero, not {std}")
    return changed


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in MODES or not all(map(math.isfinite, numbers)):
        raise DataError(f"cannot read {name} {text!r}; write one number a channel like 0.485,0.456,0.406")
    return numbers
