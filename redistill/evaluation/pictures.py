"""Images as files: a folder of them to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redistill.evaluation.errors import EvaluationError
from redistill.evaluation.places import SUFFIXES
from redistill.trainers.settings import DataConfig
from redistill.wording import format_shape

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
