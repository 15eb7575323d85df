"""A picture file as a tensor, whatever the file's mode: grey, palette, CMYK, sixteen bits, turned by its camera."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from redistill.internal.reasons import reason

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
MODES = {1: "L", 3: "RGB"}

_SIXTEEN_BITS = 65535


class UnreadablePictureError(Exception):
    """A picture that cannot be decoded; the message says why, not which."""


def is_picture(path: Path) -> bool:
    """Whether a file's name is a picture's."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(path: Path, channels: int = 3) -> Tensor:
    """The first frame of a picture as bytes [channels, H, W], upright; ``channels`` is 3 (colours) or 1 (grey).

    Sixteen-bit grey is scaled to eight. Transparency is left away.

    Raises:
        UnreadablePictureError: a damaged file, or values whose range is not known.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata and transparency; what matters is raised
        try:
            with Image.open(path) as picture:
                return to_tensor(ImageOps.exif_transpose(picture), channels)
        except UnreadablePictureError:
            raise
        except Exception as error:  # decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
            raise UnreadablePictureError(reason(error, 100)) from error


def to_tensor(picture: Image.Image, channels: int) -> Tensor:
    """A picture as bytes [channels, H, W]; ``channels`` is 3 (colours) or 1 (grey).

    Raises:
        UnreadablePictureError: values whose range is not known.
    """
    image: Tensor = pil_to_tensor(_to_bytes(picture).convert(MODES[channels]))
    return image


def count_pixels(path: Path) -> int:
    """The number of a picture's pixels, from the file's head alone.

    Raises:
        UnreadablePictureError: the head cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return int(picture.width) * int(picture.height)
    except Exception as error:
        raise UnreadablePictureError(reason(error, 100)) from error


def _to_bytes(picture: Image.Image) -> Image.Image:
    """A picture of eight bits a channel; PIL itself would cut sixteen bits off at 255, and knows no grey of LAB."""
    if picture.mode == "F":
        raise UnreadablePictureError("mode F: floating point has no known range; save it as 8 or 16 bits")
    if picture.mode == "LAB":
        return picture.convert("RGB")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > _SIXTEEN_BITS:
        raise UnreadablePictureError(f"values from {values.min()} to {values.max()}; save it as 8 or 16 bits")
    return Image.fromarray((values // 257).astype(np.uint8))
