"""Agreement: how far a student's outputs are its teacher's, on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from redistill.tracing.skeleton import mode_of

BATCH = 16
"""Images that go through a network at a time."""

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Agreement:
    """How far a student's outputs agree with its teacher's on images it was not fitted to.

    Attributes:
        share: of images with the same most likely class; None where outputs are no class scores.
        divergence: of class scores the mean Kullback-Leibler divergence of the student's distribution from the
            teacher's, in nats; of all other outputs the mean square error over the teacher's variance.
    """

    share: float | None
    divergence: float

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better; outputs that are not finite are the worst."""
        return (self.share or 0.0, -self.divergence) if math.isfinite(self.divergence) else (-1.0, -math.inf)

    def __str__(self) -> str:
        if self.share is None:
            return f"error {100 * self.divergence:.1f} % of the variance"
        return f"{100 * self.share:.1f} % agree, divergence {self.divergence:.3f}"


@torch.no_grad()
def run(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor of the output, for all images."""
    with mode_of(network, training=False):
        parts = zip(*(torch.split(value, BATCH) for value in inputs), strict=True)
        found = [_tensors(network(*(value.clone() for value in part))) for part in parts]
    return [torch.cat(leaves) for leaves in zip(*found, strict=True)]


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def compare(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Agreement:
    """Compare outputs: scores of classes (B, classes) where there is one such, numbers otherwise."""
    if len(teacher) == 1 and teacher[0].dim() == 2 and teacher[0].shape[1] > 1:
        ours, theirs = (value[0].float().log_softmax(1) for value in (student, teacher))
        share = (ours.argmax(1) == theirs.argmax(1)).float().mean()
        return Agreement(float(share), float(F.kl_div(ours, theirs, reduction="batchmean", log_target=True)))
    errors = [
        (a.float() - b.float()).square().mean() / b.float().var().clamp_min(1e-12)
        for a, b in zip(student, teacher, strict=True)
    ]
    return Agreement(None, float(torch.stack(errors).mean()))
