"""MLLD: multi-level logit distillation (Jin, Wang and Lin, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.trainers.distillation.kd import logit_pair
from redistill.trainers.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet


class MLLD(DistillationMethod):
    """Logits aligned per image, per batch and per class, at several temperatures T.

        instance   T^2 mean_b KL(p_t || p_s)
        batch      || P_s P_s^T - P_t P_t^T ||_F^2 / B
        class      || P_s^T P_s - P_t^T P_t ||_F^2 / K

    As in the paper, instance and batch see only the images whose teacher confidence is at most the median, class only
    the classes whose summed confidence is; `masked=False` sees them all.
    """

    name = "mlld"
    needs = frozenset({Need.LOGITS})
    weight = 0.9

    def __init__(self, *, temperatures: Sequence[float] = (4.0, 2.0, 3.0, 5.0, 6.0), masked: bool = True) -> None:
        super().__init__()
        self.temperatures = tuple(temperatures)
        self.masked = masked

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that both networks name as many classes."""
        logit_pair(self.name, student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The three levels, each summed over the temperatures."""
        ours, theirs = logit_pair(self.name, student, teacher)
        images, classes = self.selection(theirs)
        found: Losses = {level: ours.new_zeros(()) for level in ("instance", "batch", "class")}
        for temperature in self.temperatures:
            s, t = (F.log_softmax(value / temperature, dim=1) for value in (ours, theirs))
            divergence = (t.exp() * (t - s)).sum(dim=1)
            p_s, p_t = s.exp(), t.exp()
            found["instance"] = found["instance"] + temperature**2 * divergence[images].mean()
            found["batch"] = found["batch"] + gram_distance(p_s[images], p_t[images])
            found["class"] = found["class"] + gram_distance(p_s[:, classes].t(), p_t[:, classes].t())
        return found

    def selection(self, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the images [B] and classes [K] that take part."""
        probabilities = F.softmax(teacher, dim=1)
        confidence, mass = probabilities.amax(dim=1), probabilities.sum(dim=0)
        if not self.masked:
            return torch.ones_like(confidence, dtype=torch.bool), torch.ones_like(mass, dtype=torch.bool)
        return confidence <= confidence.median(), mass <= mass.median()


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Frobenius distance of the Gram matrices of the rows of [R, D], over R."""
    return (student @ student.t() - teacher @ teacher.t()).square().sum() / len(student)
