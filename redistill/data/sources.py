"""Where images come from: torchvision's data sets, a folder of images, and scikit-learn's digits, which need none."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from redistill.config.settings import DataConfig
from redistill.data.cache import decode_now, open_pictures
from redistill.data.folders import PictureFiles, PictureFolder, scan
from redistill.data.keywords import WORDS, words
from redistill.data.pictures import MODES, UnreadablePictureError, to_tensor
from redistill.errors import ConfigError, DataError
from redistill.internal.plugins import find
from redistill.internal.reasons import reason
from redistill.internal.suggestions import suggest
from redistill.internal.text import format_shape

_OVERSHOOT = 0.5
TEST_SHARE = 5  # every fifth of scikit-learn's digits is a test image


@dataclass(frozen=True)
class Images:
    """Images by index, as uint8 tensors [C, H, W], and their labels, [N]."""

    get: Callable[[int], Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set's training and test images, and its classes; none where the images have no labels.

    Raises:
        DataError: no images, or labels that are not of these classes.
    """

    train: Images
    test: Images
    classes: Sequence[str]

    def __post_init__(self) -> None:
        for name, labels in (("train", self.train.labels), ("test", self.test.labels)):
            if not len(labels):
                raise DataError(f"{name} holds no images")
            low, high = int(min(labels)), int(max(labels))
            if self.classes and not 0 <= low <= high < len(self.classes):
                raise DataError(
                    f"{name} has labels from {low} to {high}, and there are {len(self.classes)} classes; number the "
                    "classes from 0 on"
                )

    @classmethod
    def from_datasets(cls, train: Any, test: Any, classes: Sequence[str] | None = None) -> Source:
        """Take two map-style data sets of (image, label) pairs, as torch's and torchvision's are.

        Args:
            train, test: images are PIL's, or tensors [C, H, W] of bytes or of floats in [0, 1]; labels are numbers from
                0 on, and are asked for by ``targets`` where there is one, otherwise item by item.
            classes: their names; by default ``train.classes``, or numbers.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> pairs = TensorDataset(torch.zeros(6, 3, 8, 8), torch.arange(6) % 2)
            >>> source = Source.from_datasets(pairs, pairs)
            >>> source.classes, source.train.get(0).shape
            (('0', '1'), torch.Size([3, 8, 8]))
        """
        ours, theirs = _of_dataset(train), _of_dataset(test)
        count = max([-1, *ours.labels.tolist(), *theirs.labels.tolist()]) + 1
        return cls(ours, theirs, tuple(classes or getattr(train, "classes", None) or map(str, range(count))))


def open_source(config: DataConfig) -> Source:
    """Open the data set of that name, or by ``package.module:function`` one's own.

    Raises:
        ConfigError: an unknown name, or a function that gives something else.
        DataError: files that are missing; says where they were looked for, and how to get them.
    """
    opener = find(config.name, SOURCES, "data set", ConfigError)
    try:
        source = opener(config)
    except (FileNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and config.name not in SOURCES:  # of somebody's own code
            raise
        raise DataError(_missing(config, error)) from error
    if not isinstance(source, Source):
        raise ConfigError(f"{config.name} gives a {type(source).__name__}; it must give a redistill.data.Source")
    return source


def _missing(config: DataConfig, error: Exception) -> str:
    place = Path(config.root).expanduser().resolve()
    fetched = config.name in ("stl10", "cifar10", "cifar100", "fashion_mnist", "celeba")
    remedy = "set data.root to the folder that holds it"
    if fetched:
        remedy += ", or let torchvision fetch it with --set data.download=true"
    return f"{config.name} was looked for in {place} and not found ({reason(error, 200)}); {remedy}"


def _digits(config: DataConfig) -> Source:
    """1,797 grey digits of 8x8 pixels that come with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits come with scikit-learn, which is not installed; pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy((images.reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8))
    everything = torch.arange(len(labels))
    is_test = everything % TEST_SHARE == 0
    target = torch.from_numpy(labels).long()
    return Source(
        _in_memory(pixels[~is_test], target[~is_test]),
        _in_memory(pixels[is_test], target[is_test]),
        [str(digit) for digit in range(10)],
    )


def _keywords(config: DataConfig) -> Source:
    """Words of gliding tones as spectrograms of 32x32, made here: 1,600 to learn from and 400 to test on."""
    train, test = words("train", 200), words("test", 50)
    return Source(_in_memory(*train), _in_memory(*test), WORDS)


def _fashion_mnist(config: DataConfig) -> Source:
    """Read from the packed or unpacked files, whichever torchvision or the user left."""
    from torchvision.datasets import FashionMNIST

    if config.download:
        FashionMNIST(config.root, download=True)
    folder = Path(config.root).expanduser() / "FashionMNIST" / "raw"
    parts = [
        _in_memory(
            _read_idx(folder / f"{part}-images-idx3-ubyte")[:, None], _read_idx(folder / f"{part}-labels-idx1-ubyte")
        )
        for part in ("train", "t10k")
    ]
    return Source(parts[0], parts[1], FashionMNIST.classes)


def _read_idx(path: Path) -> Tensor:
    """An array of bytes in the IDX format: two zeros, type 8, the rank, then big-endian sizes and the data."""
    packed = path.with_name(f"{path.name}.gz")
    place = packed if packed.exists() and not path.exists() else path
    data = place.read_bytes()
    try:
        data = gzip.decompress(data) if place == packed else data
        rank = data[3]
        sizes = np.frombuffer(data, ">i4", rank, 4)
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy())
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"{place} is damaged ({reason(error)}); remove it and fetch it again") from error


def _cifar(kind: str) -> Callable[[DataConfig], Source]:
    def load(config: DataConfig) -> Source:
        import torchvision.datasets

        make = getattr(torchvision.datasets, kind)
        parts = [make(config.root, train=train, download=config.download) for train in (True, False)]
        images = [
            _in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in parts
        ]
        return Source(images[0], images[1], parts[0].classes)

    return load


def _stl10(config: DataConfig) -> Source:
    from torchvision.datasets import STL10

    parts = [STL10(config.root, split=split, download=config.download) for split in ("train", "test")]
    images = [_in_memory(torch.from_numpy(part.data), torch.from_numpy(part.labels)) for part in parts]
    return Source(images[0], images[1], parts[0].classes)


def _celeba(config: DataConfig) -> Source:
    """Faces; two classes by an attribute where one is named, otherwise one."""
    from torchvision.datasets import CelebA

    parts = [CelebA(config.root, split=split, download=config.download) for split in ("train", "test")]
    names, attribute = [name for name in parts[0].attr_names if name], config.attribute
    if attribute is not None and attribute not in names:
        raise ConfigError(f"data.attribute: CelebA has no {attribute!r}{suggest(attribute, names)}")
    column = None if attribute is None else names.index(attribute)
    images = [_faces(part, column, config.channels) for part in parts]
    return Source(images[0], images[1], ["face"] if attribute is None else [f"not {attribute}", attribute])


def _faces(part: Any, attribute: int | None, channels: int) -> Images:
    folder = Path(part.root) / part.base_folder / "img_align_celeba"
    count = len(part.filename)
    labels = torch.zeros(count, dtype=torch.long) if attribute is None else part.attr[:, attribute].long()
    return Images(lambda index: decode_now(folder / part.filename[index], channels), labels)


def _imagenet(config: DataConfig) -> Source:
    from torchvision.datasets import ImageNet

    parts = [ImageNet(config.root, split=split) for split in ("train", "val")]
    return Source(_from_files(parts[0], config.channels), _from_files(parts[1], config.channels), parts[0].classes)


def _image_folder(config: DataConfig) -> Source:
    """A folder of pictures with one folder a class in `train`, and in `test` or `val`; or pictures without classes."""
    if config.channels not in MODES:
        raise ConfigError(f"data.channels={config.channels}: pictures have 3 channels, or 1 where they are to be grey")
    found = scan(Path(config.root).expanduser())
    return Source(_decoded(found.train, found, config), _decoded(found.test, found, config), found.classes)


def _decoded(files: PictureFiles, found: PictureFolder, config: DataConfig) -> Images:
    """Pictures decoded once, with their labels."""
    cache = None if config.cache == "none" else _cache_folder(config.cache)
    pictures = open_pictures(files, config.channels, cache=cache, limit=config.cache_limit, damaged=config.damaged)
    labels = torch.tensor(files.labels, dtype=torch.long)[list(pictures.kept)]
    for label, name in enumerate(found.classes):
        if not (labels == label).any():
            raise DataError(f"{files.root / name} holds no picture that can be read; add some, or remove the folder")
    return Images(pictures.get, labels)


def _cache_folder(cache: str) -> Path:
    if cache != "auto":
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "redistill" / "pictures"


def _of_dataset(dataset: Any) -> Images:
    targets = getattr(dataset, "targets", None)
    try:
        labels = [int(dataset[i][1]) for i in range(len(dataset))] if targets is None else list(map(int, targets))
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"an item of the data set is no pair of an image and a number ({reason(error)}); give (image, label)"
        ) from error
    if len(labels) != len(dataset):
        raise DataError(f"the data set has {len(labels)} targets for {len(dataset)} images; give one for each")
    return Images(lambda index: _as_tensor(dataset[index][0]), torch.tensor(labels, dtype=torch.long))


def _as_tensor(image: Any) -> Tensor:
    """A tensor as it is; PIL's grey images with one channel, all others with three.

    Raises:
        DataError: neither, or a tensor that is no image.
    """
    if isinstance(image, Tensor):
        return _checked(image)
    if not isinstance(image, Image):
        raise DataError(f"the data set gives a {type(image).__name__}; give PIL's images, or tensors [C, H, W]")
    try:
        return to_tensor(image, 1 if image.mode == "L" else 3)
    except UnreadablePictureError as error:
        raise DataError(f"the data set gives an image of {error}") from error


def _checked(image: Tensor) -> Tensor:
    """An image of bytes, or of floats in [0, 1], beyond which resampling may have taken them a little."""
    if image.dim() != 3:
        raise DataError(f"the data set gives an image of shape {format_shape(image.shape)}; give tensors [C, H, W]")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise DataError(f"the data set gives an image of {image.dtype}; give bytes, or floats in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not -_OVERSHOOT <= low <= high <= 1 + _OVERSHOOT:
        raise DataError(
            f"the data set gives an image of values from {low:g} to {high:g}; give bytes, or floats in [0, 1]"
        )
    return image


def _in_memory(pixels: Tensor, labels: Tensor) -> Images:
    return Images(lambda index: pixels[index], labels.long())


def _from_files(folder: Any, channels: int) -> Images:
    return Images(lambda index: decode_now(Path(folder.samples[index][0]), channels), torch.tensor(folder.targets))


SOURCES: Mapping[str, Callable[[DataConfig], Source]] = {
    "digits": _digits,
    "keywords": _keywords,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "stl10": _stl10,
    "celeba": _celeba,
    "imagenet": _imagenet,
    "image_folder": _image_folder,
}
"""Every data set by its name."""
