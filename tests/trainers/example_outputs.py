"""Hand-made outputs of two small networks: maps of 4x4 and 2x2 in the student, 8x8 and 4x4 in the teacher."""

import torch

from redistill.distillation import Outputs, Targets, TrainingSet

BATCH, CLASSES, SAMPLES = 6, 5, 24


def outputs(sizes, widths, *, seed, taps=None):
    """Outputs with random maps that record gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32).requires_grad_()

    names = [f"layer{i + 1}" for i in range(len(sizes))]
    grids = list(zip(names, sizes, widths, strict=True))
    return Outputs(
        logits=draw(BATCH, CLASSES),
        taps={name: draw(BATCH, width, size, size) for name, size, width in (taps or grids)},
        stages={name: draw(BATCH, width, size, size) for name, size, width in grids},
        preactivations={name: draw(BATCH, width, size, size) for name, size, width in grids},
        reentry=draw(BATCH, 4, 3, 3),
        coarse={name: draw(BATCH, width, size, size) for name, size, width in (taps or grids)},
    )


def student_outputs(widths=(3, 4, 6)):
    return outputs((6, 4, 2), widths, seed=1, taps=[("a", 4, 3), ("b", 2, 5)])


def teacher_outputs(widths=(3, 4, 6)):
    return outputs((12, 6, 3), widths, seed=2, taps=[("a", 4, 7), ("b", 2, 5)])


def training_set():
    return TrainingSet(SAMPLES, CLASSES, torch.arange(SAMPLES) % CLASSES)


def hard_targets():
    indices = torch.tensor([3, 17, 8, 0, 21, 9])
    return Targets(labels=indices % CLASSES, indices=indices)


def soft_targets():
    first, second = torch.tensor([3, 2, 3, 0, 1, 4]), torch.tensor([0, 2, 1, 4, 3, 2])
    one_hot = torch.nn.functional.one_hot
    return Targets(soft=0.7 * one_hot(first, CLASSES) + 0.3 * one_hot(second, CLASSES))


def tensors(given):
    """Every tensor of some outputs."""
    return [
        given.logits,
        given.reentry,
        *given.taps.values(),
        *given.stages.values(),
        *given.preactivations.values(),
        *given.coarse.values(),
    ]
