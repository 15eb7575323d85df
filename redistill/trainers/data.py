"""Training, validation and test sets; their order and their augmentation.

Validation images come out of the training set, class by class, so that nothing is ever chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from redistill.trainers import seeding
from redistill.trainers.distillation import TrainingSet
from redistill.trainers.errors import DataError
from redistill.trainers.settings import AugmentationConfig, DataConfig
from redistill.trainers.sources import Images, open_source

Transform = Callable[[Any], Tensor]
Item = dict[str, Any]


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

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        source = int(self.chosen[index])
        with seeding.seeded(self.seed, "augmentation", epoch, source):
            item: Item = {"inputs": self.transform(self.images.get(source))}
            if self.strong is not None:
                item["strong"] = self.strong(self.images.get(source))
        return {**item, "labels": int(self.images.labels[source]), "indices": index}

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
    """

    train: ImageSet
    calibration: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: int

    @property
    def training_set(self) -> TrainingSet:
        """The facts that some distillation methods are built from."""
        return TrainingSet(len(self.train), self.classes, self.train.labels)


def open_data(config: DataConfig, seed: int) -> DataSets:
    """Open the data set, put validation images aside, limit what is left."""
    source = open_source(config)
    held_out, rest = split_by_class(source.train.labels, config.validation, config.split_seed)
    if config.train_limit is not None:
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
    )


def split_by_class(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a share of each class, and of the rest, both in ascending order."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero()[:, 0]
        shuffled = members[torch.randperm(len(members), generator=seeding.generator(seed, "split", label))]
        chosen[shuffled[: max(1, round(share * len(members)))]] = True
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
    steps: list[Any] = [v2.ToImage(), *_crop(augmentation, config.image_size)]
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation.policy != "none":
        steps.append(_POLICIES[augmentation.policy]())
    steps += _finish(config)
    if augmentation.erasing > 0:
        steps.append(v2.RandomErasing(p=augmentation.erasing))
    return v2.Compose(steps)  # type: ignore[no-any-return]


def plain_transform(config: DataConfig) -> Transform:
    """Resize to the image size, or resize larger and crop the centre, then normalisation."""
    size = config.image_size
    steps = [v2.ToImage(), v2.Resize(config.test_resize or size, antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*steps, *_finish(config)])  # type: ignore[no-any-return]


_POLICIES: dict[str, Callable[[], Any]] = {
    "trivial": v2.TrivialAugmentWide,
    "randaugment": v2.RandAugment,
    "autoaugment": v2.AutoAugment,
}


def _crop(augmentation: AugmentationConfig, size: int) -> list[Any]:
    if augmentation.crop == "random_resized":
        return [v2.RandomResizedCrop(size, scale=augmentation.scale, antialias=True)]
    resize = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    return [*resize, v2.RandomCrop(size, padding=augmentation.padding)] if augmentation.crop == "padded" else resize


def _finish(config: DataConfig) -> list[Any]:
    """To float in [0, 1], to the number of channels, normalised."""
    channels = config.channels
    grey_to_colour = v2.Lambda(lambda image: image.expand(channels, -1, -1) if image.shape[0] == 1 else image)
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (config.mean, config.std))
    return [v2.ToDtype(torch.float32, scale=True), grey_to_colour, v2.Normalize(mean, std)]
