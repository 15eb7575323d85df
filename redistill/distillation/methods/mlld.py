"""MLLD: multi-level logit distillation (Jin, Wang and Lin, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.kd import logit_pair, softened_divergence
from redistill.distillation.options import choice
from redistill.errors import TapError

STRONG = (0, 2, 3)
"""Places of the temperatures at which the released code takes the strong view."""

Variant = Literal["paper", "released"]


class MLLD(DistillationMethod):
    """Logits aligned per image, per batch and per class, at several temperatures T.

        instance   T^2 mean_b KL(p_t || p_s)
        batch      || P_s P_s^T - P_t P_t^T ||_F^2 / B
        class      || P_s^T P_s - P_t^T P_t ||_F^2 / K

    "paper": instance and batch see only the images whose teacher confidence is at most the median, class only the
    classes whose summed confidence is; `masked=False` sees them all. "released" is what the published code computes: it
    needs a weak and a strong view (`data.strong`), halves the weak view's terms instead of choosing among them, and
    takes the strong view's instances at the first, third and fourth temperature and the weak view's at the others.
    """

    name = "mlld"
    needs = frozenset({Need.LOGITS})
    paper = "Jin, Wang and Lin, CVPR 2023"
    weight = 0.9

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = (4.0, 2.0, 3.0, 5.0, 6.0),
        masked: bool = True,
        variant: Variant = "paper",
    ) -> None:
        super().__init__()
        self.temperatures = tuple(temperatures)
        self.masked = masked
        self.variant = choice(self.name, "variant", variant, ("paper", "released"))

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that both networks name as many classes."""
        logit_pair(self.name, student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The three levels, each summed over the temperatures."""
        ours, theirs = logit_pair(self.name, student, teacher)
        if self.variant == "released":
            return self._released(ours, theirs, targets)
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

    def _released(self, student: Tensor, teacher: Tensor, targets: Targets) -> Losses:
        if targets.views != 2:
            raise TapError("mlld: the released variant needs a weak and a strong view of each image; set data.strong")
        (weak_s, strong_s), (weak_t, strong_t) = student.chunk(2), teacher.chunk(2)
        found: Losses = {level: student.new_zeros(()) for level in ("instance", "batch", "class")}
        for place, temperature in enumerate(self.temperatures):
            p_s, p_t = (F.softmax(value / temperature, dim=1) for value in (weak_s, weak_t))
            weak = softened_divergence(weak_s, weak_t, temperature)
            strong = softened_divergence(strong_s, strong_t, temperature) if place in STRONG else weak
            found["instance"] = found["instance"] + 0.5 * weak + strong
            found["batch"] = found["batch"] + 0.5 * gram_distance(p_s, p_t)
            found["class"] = found["class"] + 0.5 * gram_distance(p_s.t(), p_t.t())
        return found


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Frobenius distance of the Gram matrices of the rows of [R, D], over R."""
    return (student @ student.t() - teacher @ teacher.t()).square().sum() / len(student)
