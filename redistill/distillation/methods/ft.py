"""FT: factor transfer (Kim, Park and Kwak, NeurIPS 2018, arXiv 1802.04977). Two stages."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.maps import match_size
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import choice, positive

Variant = Literal["paper", "repdistiller"]
SLOPE = 0.1


class FT(DistillationMethod):
    """First stage: a paraphraser (autoencoder) learns factors of the teacher's deepest stage; second: a translator on
    the student's deepest stage imitates them.

        first    mean ( rec(f_t) - f_t )^2
        second   mean | N(F_s) - N(F_t) |   with N the unit norm of each image's whole factor tensor ("paper"),
                 or of its channel mean of squares ("repdistiller")
    """

    name = "ft"
    needs = frozenset({Need.STAGES})
    paper = "Kim, Park and Kwak, NeurIPS 2018, arXiv 1802.04977"
    weight = 200.0
    two_stage = True

    def __init__(self, *, rate: float = 0.5, variant: Variant = "paper") -> None:
        super().__init__()
        self.rate = positive(self.name, "rate", rate)
        self.variant = choice(self.name, "variant", variant, ("paper", "repdistiller"))
        self.encoder: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        self.translator: nn.Module = nn.Identity()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create paraphraser and translator for the deepest stages."""
        ours, theirs = deepest(student).shape[1], deepest(teacher).shape[1]
        factors = max(1, round(theirs * self.rate))
        self.encoder = convolutions((theirs, theirs, factors, factors))
        self.decoder = convolutions((factors, factors, theirs, theirs), transposed=True)
        self.translator = convolutions((ours, ours, factors, factors), norm=True)

    def initialise(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The paraphraser's reconstruction error."""
        value = deepest(teacher)
        return {"paraphraser": F.mse_loss(self.decoder(self.encoder(value)), value)}

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The distance of the factors; the paraphraser is frozen."""
        with torch.no_grad():
            theirs = self.encoder(deepest(teacher))
        ours, theirs = match_size(self.translator(deepest(student)), theirs)
        return {"factors": F.l1_loss(self.unit(ours), self.unit(theirs))}

    def unit(self, factors: Tensor) -> Tensor:
        """The compared vector of each image, of unit norm, [B, D]."""
        vector = factors if self.variant == "paper" else factors.square().mean(dim=1)
        return F.normalize(vector.flatten(1))


def deepest(outputs: Outputs) -> Tensor:
    """The last stage's map."""
    return list(outputs.stages.values())[-1]


def convolutions(widths: tuple[int, ...], *, transposed: bool = False, norm: bool = False) -> nn.Module:
    """A chain of 3x3 convolutions of stride 1, each followed by LeakyReLU, with batch norms if `norm`."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        layers.append(kind(inputs, outputs, kernel_size=3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)
