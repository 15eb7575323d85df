"""Real images: the reference of the scores, and others that set the floor which no generator is below."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from redistill.config.settings import DataConfig
from redistill.data.datasets import ImageSet, plain_transform
from redistill.data.sources import Images, open_source
from redistill.errors import EvaluationError
from redistill.internal import seeding

Split = Literal["train", "test"]
PART, MANY = 500, 20_000  # images that are read at once; images from which on reading is shown


@dataclass(frozen=True)
class RealImages:
    """Real images, uint8 [N, C, H, W].

    Attributes:
        reference: what generated images are compared with.
        floor: two disjoint sets of real images; what the first scores against the second no generator can be expected
            to better.
        description: of the reference; `floor_description` of the two sets.
    """

    reference: Tensor
    floor: tuple[Tensor, Tensor]
    description: str
    floor_description: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the reference's pixels."""
        return hashlib.sha256(self.reference.numpy().tobytes()).hexdigest()


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, the values outside cut off."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def read_images(images: Images, chosen: Tensor, config: DataConfig) -> Tensor:
    """Some images of a split as the networks see them, but in [-1, 1], float [N, C, H, W]."""
    shown = ImageSet(images, chosen, plain_transform(replace(config, mean=(0.5,), std=(0.5,))))
    parts = torch.split(torch.arange(len(chosen)), PART)
    quiet = None if len(chosen) >= MANY else True
    bar = tqdm(parts, desc="reading", unit_scale=PART, unit="image", leave=False, disable=quiet)
    return torch.stack([item["inputs"] for part in bar for item in shown.__getitems__(part.tolist())])


def held_out(config: DataConfig, count: int) -> Tensor:
    """Test images in [-1, 1], float [N, C, H, W]: the first of them in a fixed random order."""
    images = open_source(config).test
    return read_images(images, _order(len(images), "held out", 0)[:count], config)


def open_real(config: DataConfig, split: Split, count: int, size: int | None = None, seed: int = 0) -> RealImages:
    """A reference of `size` images of a split (by default `count`), and `count` others that set the floor.

    The others are the rest of the split; where that is too small they come from the other split, and where that is
    too small as well, the floor is between the halves of the split.

    Raises:
        EvaluationError: more images are wanted than the split has.
    """
    source, other = open_source(config), "test" if split == "train" else "train"
    splits = {"train": source.train, "test": source.test}
    available, size = len(splits[split]), size or count
    if size > available:
        raise EvaluationError(
            f"the {split} split of {config.name} has {available} images, not {size}; lower -n, or give --reference-size"
        )
    order = _order(available, split, seed)
    reference = to_pixels(read_images(splits[split], order[:size], config))
    name = f"{config.name} {split}, {size} images"
    if available - size >= count:
        others = to_pixels(read_images(splits[split], order[size : size + count], config))
        return RealImages(reference, (others, reference), name, f"{count} others of {split}")
    if len(splits[other]) >= count:
        others = to_pixels(read_images(splits[other], _order(len(splits[other]), other, seed)[:count], config))
        return RealImages(reference, (others, reference), name, f"{count} of {other}")
    whole = to_pixels(read_images(splits[split], order, config))
    half = available // 2
    return RealImages(reference, (whole[:half], whole[half : 2 * half]), name, f"halves of {split}, {half} images each")


def _order(images: int, purpose: str, seed: int) -> Tensor:
    return torch.randperm(images, generator=seeding.generator(seed, "real", purpose))
