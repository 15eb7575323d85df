"""A classifier of a few hundred parameters on random images of two classes, for tests of the loop."""

import torch
from torch import nn

from redistill.config.recipes import OptimizerConfig, RecipeConfig, ScheduleConfig
from redistill.config.settings import RunConfig, TargetsConfig
from redistill.data.datasets import DataSets, ImageSet, Step
from redistill.data.sources import Images
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.loop import Loop

CLASSES = 4


def network(dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, CLASSES),
    )


def noisy(image):
    return image + 0.1 * torch.randn(image.shape)


def data(train=48, held_out=20):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(train + 2 * held_out) % CLASSES
    pixels = torch.randn(len(labels), 3, 8, 8, generator=generator) + labels[:, None, None, None]
    images = Images(lambda index: pixels[index], labels)
    parts = torch.arange(len(labels)).split([train, held_out, held_out])
    plain = [ImageSet(images, part, []) for part in parts]
    return DataSets(ImageSet(images, parts[0], [Step(noisy, draws=True)], seed=3), *plain, classes=CLASSES)


def recipe(**changes):
    given = {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": OptimizerConfig(learning_rate=0.05),
        "schedule": ScheduleConfig(name="cosine", warmup=0.5),
        "ema": 0.9,
    }
    return RecipeConfig(**{**given, **changes})


def loop(folder, *, run=None, task=None, dropout=0.2, targets=None, **changes):
    made = task or ClassifierTask(network(dropout), data(), targets or TargetsConfig())
    return Loop(made, recipe(**changes), run or RunConfig(log_every=2), folder)


def weights(made):
    return {name: value.clone() for name, value in made.task.network.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)
