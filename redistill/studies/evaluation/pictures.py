"""Images as files: a folder of them to be scored, and strips of those that were generated."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redistill.config.settings import DataConfig
from redistill.errors import EvaluationError
from redistill.internal.files import write_atomically
from redistill.internal.text import format_shape
from redistill.studies.evaluation.paths import SUFFIXES

TILES = 12
GREY = ("1", "L", "I", "F", "I;16")


def read_folder(folder: Path, data: DataConfig, count: int | None = None) -> Tensor:
    """The images of a folder in the order of their names, all or the first `count`: uint8 [N, C, H, W].

    Raises:
        EvaluationError: fewer than `count`, one that cannot be read, or one of another size than the data set's.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if count is not None and count > len(files):
        raise EvaluationError(f"{folder} holds {len(files)} images, not {count}; lower -n or leave it out")
    return torch.stack([read_picture(file, data) for file in files[:count]])


def read_picture(file: Path, data: DataConfig) -> Tensor:
    """One image, uint8 [C, H, W]; a grey one is repeated for a data set with colours."""
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read as an image; mend or remove it") from error
    size = data.image_size
    if pixels.shape[:2] != (size, size):
        raise EvaluationError(
            f"{file} has {format_shape(pixels.shape[:2])} pixels and the reference {size}x{size}; give images of that "
            f"size, or --set data.image_size={pixels.shape[0]} if the denoiser was trained so"
        )
    planes = torch.from_numpy(pixels.copy()).reshape(size, size, -1).permute(2, 0, 1)
    if len(planes) > data.channels:
        raise EvaluationError(f"{file} is a colour image and the reference is grey; --set data.channels=3")
    return planes.expand(data.channels, -1, -1).contiguous()


def write_strip(images: Tensor, path: Path) -> None:
    """Write the first images, uint8 [N, C, H, W], side by side as a PNG, without loss."""
    strip = torch.cat(list(images[:TILES]), dim=2).permute(1, 2, 0).squeeze(2)
    buffer = io.BytesIO()
    Image.fromarray(strip.numpy()).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def read_strip(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The images of a strip, uint8 [N, C, H, W]."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image)).reshape(shape[1], -1, shape[2], shape[0])
    return pixels.permute(1, 3, 0, 2)
