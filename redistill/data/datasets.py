"""Training, validation and test sets; their order and their augmentation.

Validation images come out of the training set, class by class, so that nothing is ever chosen on the test set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from redistill.config.settings import AugmentationConfig, DataConfig
from redistill.data.sources import Images, Source, open_source
from redistill.distillation import TrainingSet
from redistill.errors import DataError
from redistill.internal import seeding

_NAMED_AT_MOST = 3
_COLOURS = 3

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Key = int | tuple[int, int]
"""An image's index, or (epoch, index)."""


@dataclass(frozen=True)
class Step:
    """One transform of images [..., C, H, W]; `draws` says whether it is random, and so made for each image alone."""

    transform: Callable[[Tensor], Tensor]
    draws: bool = False

    def apply(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Sequence[Tensor]:
        """Transform the images, each under its seed if that matters; otherwise as one stack where shapes agree."""
        if self.draws:
            return [self._draw(image, seed) for image, seed in zip(images, seeds, strict=True)]
        if len({image.shape for image in images}) > 1:
            return [self.transform(image) for image in images]
        return self.transform(torch.stack(tuple(images))).unbind()

    def _draw(self, image: Tensor, seed: int) -> Tensor:
        with seeding.seeded(seed):
            return self.transform(image)


Transform = Sequence[Step]


class ImageSet(Dataset[Item]):
    """Some images of a source, transformed. An item is {"inputs": [C, H, W], "labels": int, "indices": int}, and
    {"strong": [C, H, W]} where there is a transform for a second view.

    The augmentation of an image is a function of (seed, epoch, image), whichever worker or process asks for it; the
    epoch comes with the index, from :class:`EpochOrder`.
    """

    def __init__(
        self, images: Images, chosen: Tensor, transform: Transform, seed: int = 0, strong: Transform | None = None
    ) -> None:
        self.images = images
        self.chosen = chosen
        self.transform = transform
        self.seed = seed
        self.strong = strong

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        """The items of a batch, which torch's loaders ask for at once."""
        places = [key if isinstance(key, tuple) else (0, key) for key in keys]
        sources = [(epoch, int(self.chosen[index])) for epoch, index in places]
        images = [self.images.get(source) for _, source in sources]
        shown = {"inputs": self._transformed(self.transform, images, sources, "augmentation")}
        if self.strong is not None:
            shown["strong"] = self._transformed(self.strong, images, sources, "strong augmentation")
        labels = [{"labels": int(self.images.labels[source])} for _, source in sources]
        views = [dict(zip(shown, view, strict=True)) for view in zip(*shown.values(), strict=True)]
        return [view | label | {"indices": i} for view, label, (_, i) in zip(views, labels, places, strict=True)]

    def _transformed(
        self, transform: Transform, images: Sequence[Tensor], sources: Sequence[tuple[int, int]], purpose: str
    ) -> Sequence[Tensor]:
        for number, step in enumerate(transform):
            images = step.apply(images, [seeding.derive(self.seed, purpose, number, *place) for place in sources])
        return images

    @property
    def labels(self) -> Tensor:
        """Class indices of all items, [N]."""
        return self.images.labels[self.chosen]


class EpochOrder(Sampler[tuple[int, int]]):
    """A new permutation each epoch, a function of (seed, epoch), in whole batches from `first` up to `last`.

    It yields (epoch, index) so that workers know the epoch.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch, self.first, self.last = 0, 0, self.batches

    @property
    def batches(self) -> int:
        """Whole batches of an epoch."""
        return self.samples // self.batch_size

    def go_to(self, epoch: int, first: int, last: int) -> None:
        """Let the next iteration give these batches of that epoch."""
        self.epoch, self.first, self.last = epoch, first, min(last, self.batches)

    def __len__(self) -> int:
        return (self.last - self.first) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.samples, generator=seeding.generator(self.seed, "order", self.epoch))
        for index in order[self.first * self.batch_size : self.last * self.batch_size].tolist():
            yield self.epoch, index


@dataclass(frozen=True)
class DataSets:
    """What a classifier is trained, selected and tested on.

    Attributes:
        calibration: the training images without augmentation, in a fixed order.
        classes: how many there are, 0 where that is not known yet.
        labelled: whether the labels are the images' own, not a network's answers.
    """

    train: ImageSet
    calibration: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: int
    labelled: bool = True

    @property
    def training_set(self) -> TrainingSet:
        """The facts that some distillation methods are built from."""
        return TrainingSet(len(self.train), self.classes, self.train.labels)


def open_data(config: DataConfig, seed: int, source: Source | None = None) -> DataSets:
    """Open the data set (or take ``source``), put validation images aside, limit what is left."""
    source = source or open_source(config)
    held_out, rest = split_by_class(source.train.labels, config.validation, config.split_seed)
    _check_split(source, held_out)
    if config.train_limit is not None:
        if config.train_limit < len(source.classes):
            raise DataError(f"data.train_limit={config.train_limit}: there are {len(source.classes)} classes; raise it")
        rest = rest[
            limit_by_class(source.train.labels[rest], config.train_limit, config.split_seed, "data.train_limit")
        ]
    tested = torch.arange(len(source.test))
    if config.test_limit is not None:
        tested = limit_by_class(source.test.labels, config.test_limit, config.split_seed, "data.test_limit")
    plain = plain_transform(config)
    strong = None if config.strong is None else train_transform(config, config.strong)
    return DataSets(
        train=ImageSet(source.train, rest, train_transform(config, config.augmentation), seed, strong),
        calibration=ImageSet(source.train, rest, plain),
        validation=ImageSet(source.train, held_out, plain),
        test=ImageSet(source.test, tested, plain),
        classes=len(source.classes),
        labelled=bool(source.classes),
    )


def _check_split(source: Source, held_out: Tensor) -> None:
    """Say which classes are too small to be validated, or to be learnt."""
    if not len(held_out):
        raise DataError("no class has two training images, so none can be put aside for validation; add some")
    trained, validated = set(source.train.labels.tolist()), set(source.train.labels[held_out].tolist())
    classes = set(range(len(source.classes)))
    for words, found in (
        ("no training image", classes - trained),
        ("one training image and none for validation", (classes & trained) - validated),
    ):
        if found:
            named = ", ".join(source.classes[label] for label in sorted(found)[:_NAMED_AT_MOST])
            more = " ..." if len(found) > _NAMED_AT_MOST else ""
            logger.warning("%d classes have %s: %s%s", len(found), words, named, more)


def split_by_class(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a share of each class, and of the rest, both in ascending order.

    Of a class at least one is held out and at least one is in the rest; a single one is in the rest.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero()[:, 0]
        shuffled = members[torch.randperm(len(members), generator=seeding.generator(seed, "split", label))]
        chosen[shuffled[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


def limit_by_class(labels: Tensor, limit: int, seed: int, name: str) -> Tensor:
    """Indices of `limit` items, as evenly over the classes as they allow, in ascending order."""
    if limit > len(labels):
        raise DataError(f"{name}={limit}: only {len(labels)} images are there; lower it or leave it out")
    shuffled = torch.randperm(len(labels), generator=seeding.generator(seed, "limit"))
    rank = torch.empty(len(labels), dtype=torch.long)
    for label in torch.unique(labels).tolist():
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    return torch.argsort(rank, stable=True)[:limit].sort().values


def train_transform(config: DataConfig, augmentation: AugmentationConfig) -> Transform:
    """Random crop, flip, policy and erasing as configured, then normalisation."""
    size, random = config.image_size, []
    if augmentation.crop == "random_resized":
        random.append(v2.RandomResizedCrop(size, scale=augmentation.scale, antialias=True))
    elif augmentation.crop == "padded":
        random.append(v2.RandomCrop(size, padding=augmentation.padding))
    if augmentation.flip:
        random.append(v2.RandomHorizontalFlip())
    if augmentation.policy != "none":
        random.append(_POLICIES[augmentation.policy]())
    resizes = [] if augmentation.crop == "random_resized" else [_resize(size, size)]
    erases = [Step(v2.RandomErasing(p=augmentation.erasing), draws=True)] if augmentation.erasing > 0 else []
    varies = [Step(v2.Compose(random), draws=True)] if random else []
    return [*resizes, *varies, _finish(config), *erases]


def plain_transform(config: DataConfig) -> Transform:
    """Resize to the image size, or resize larger and crop the centre, then normalisation."""
    return [_resize(config.test_resize or config.image_size, config.image_size), _finish(config)]


_POLICIES: dict[str, Callable[[], Any]] = {
    "trivial": v2.TrivialAugmentWide,
    "randaugment": v2.RandAugment,
    "autoaugment": v2.AutoAugment,
}


def _resize(side: int, size: int) -> Step:
    return Step(v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(size)]))


def _finish(config: DataConfig) -> Step:
    """To float in [0, 1], to the number of channels, normalised."""
    channels = config.channels
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (config.mean, config.std))
    channelled = v2.Lambda(lambda images: _with_channels(images, channels))
    return Step(v2.Compose([v2.ToDtype(torch.float32, scale=True), channelled, v2.Normalize(mean, std)]))


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images repeated in every channel, coloured ones made grey, others as they are."""
    found = images.shape[-3]
    if found == 1:
        return images.expand(*images.shape[:-3], channels, -1, -1)
    if found == _COLOURS and channels == 1:
        grey: Tensor = rgb_to_grayscale(images)
        return grey
    if found != channels:
        raise DataError(f"the data set's images have {found} channels, data.channels is {channels}; set it to {found}")
    return images
