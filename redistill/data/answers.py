"""Images without labels: a teacher's answers in the labels' place, so that all else is as with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from redistill.data.datasets import DataSets, ImageSet
from redistill.data.sources import Images


def label_by(data: DataSets, answer: Callable[[Tensor], Tensor], batch_size: int = 64) -> DataSets:
    """The same images labelled by ``answer``, which maps images [B, C, H, W] to logits [B, K], without augmentation.

    What is then called accuracy is agreement with whoever answered.
    """
    test, classes = _answers([data.test], answer, batch_size)
    learnt, _ = _answers([data.calibration, data.validation], answer, batch_size)

    def relabelled(part: ImageSet, images: Images) -> ImageSet:
        return ImageSet(images, part.chosen, part.transform, part.seed, part.strong)

    return replace(
        data,
        train=relabelled(data.train, learnt),
        calibration=relabelled(data.calibration, learnt),
        validation=relabelled(data.validation, learnt),
        test=relabelled(data.test, test),
        classes=classes,
    )


def _answers(parts: list[ImageSet], answer: Callable[[Tensor], Tensor], batch_size: int) -> tuple[Images, int]:
    """The parts' common images with the likeliest class of each as label, and the number of classes."""
    labels, classes = torch.zeros_like(parts[0].images.labels), 0
    for part in parts:
        for places in torch.split(torch.arange(len(part)), batch_size):
            images = torch.stack([item["inputs"] for item in part.__getitems__(places.tolist())])
            logits = answer(images)
            labels[part.chosen[places]] = logits.argmax(dim=1).cpu()
            classes = logits.shape[1]
    return replace(parts[0].images, labels=labels), classes
