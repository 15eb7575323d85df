"""Calibration: the images by which the ranges of an int8 network are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from redistill.config.files import load, override, read, resolved
from redistill.config.settings import ClassifierConfig, DataConfig
from redistill.config.trust import check_trust
from redistill.data.cache import decode_now
from redistill.data.datasets import ImageSet, open_data, plain_transform
from redistill.data.folders import pictures_below
from redistill.data.sources import Images
from redistill.errors import ExportError
from redistill.export.metadata import Experiment
from redistill.internal.text import format_shape


def calibration_batches(
    source: str | None,
    experiment: Experiment | None,
    example: Tensor,
    samples: int,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> tuple[Tensor, ...]:
    """Batches shaped like ``example``.

    Args:
        source: an experiment (packaged, or a file) or a folder of images; by default the student's own experiment.
        experiment: the student's own, if it has one.
        example: an input of the network, [B, C, H, W].
        samples: how many images at most. Those of an experiment are held out of its training set.
        overrides: ``a.b=value`` changes of an experiment.
        trust: whether an experiment may name code to import.

    Raises:
        ExportError: no source, no images, or images of another shape.
    """
    if source is not None and Path(source).is_dir():
        images = _from_folder(Path(source), experiment, example)
    else:
        images = _held_out(_experiment(source, experiment, overrides, trust))
    drawn = [_checked(image, example) for _, image in zip(range(samples), images, strict=False)]
    batches = torch.split(torch.stack(drawn), example.shape[0]) if drawn else ()
    whole = tuple(batch for batch in batches if len(batch) == len(example))
    if not whole:
        raise ExportError(f"{source} holds {len(drawn)} images, a batch is {len(example)}; int8 needs more of them")
    return whole


def _checked(image: Tensor, example: Tensor) -> Tensor:
    if image.shape != example.shape[1:]:
        raise ExportError(
            f"calibration images are {format_shape(image.shape)}, the network takes "
            f"{format_shape(example.shape[1:])}; give --calibration data of that size"
        )
    return image


def _experiment(
    source: str | None, experiment: Experiment | None, overrides: Sequence[str], trust: bool
) -> ClassifierConfig:
    if source is not None:
        config = load(ClassifierConfig, source, overrides)
        check_trust(config, source, trust)
        return config
    if experiment is None:
        raise ExportError(
            "int8 needs images to measure ranges by; give --calibration an experiment (digits/smoke.yaml) or a folder"
        )
    return read(ClassifierConfig, override(resolved(experiment.config), overrides))


def _held_out(config: ClassifierConfig) -> Iterator[Tensor]:
    """Images of the validation set, which is a part of the training set; spread over the classes."""
    images = open_data(config.data, config.run.seed).validation
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return (images[int(index)]["inputs"] for index in order)


def _from_folder(folder: Path, experiment: Experiment | None, example: Tensor) -> Iterator[Tensor]:
    """The images in a folder and below, prepared as the experiment prepares its own."""
    data = experiment.config.data if experiment is not None else DataConfig(channels=example.shape[1])
    prepare = plain_transform(replace(data, image_size=example.shape[-1], test_resize=None))
    channels = 1 if example.shape[1] == 1 else 3
    paths = pictures_below(folder)
    images = Images(lambda index: decode_now(paths[index], channels), torch.zeros(len(paths), dtype=torch.long))
    prepared = ImageSet(images, torch.arange(len(paths)), prepare)
    return (prepared[index]["inputs"] for index in range(len(paths)))
