"""CC: correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import choice, positive

Variant = Literal["paper", "repdistiller"]


class CC(DistillationMethod):
    """The correlation of a batch's pooled features, student against teacher.

    paper          || C_s - C_t ||_F^2 / B^2, C_ij = exp(-gamma |f_i - f_j|^2) of unit features, as its Taylor series:
                   exp(-2 gamma) sum_p (2 gamma)^p / p! (f_i . f_j)^p, p = 0..order
    repdistiller   D = |e_s - e_t| with learnt linear embeddings e, mean_i sum_d D_id D_(i+1)d: what the RepDistiller
                   benchmark ran (weight 0.02). A constant embedding is among its minima, and batch order matters.
    """

    name = "cc"
    needs = frozenset({Need.POOLED})
    paper = "Peng et al., ICCV 2019, arXiv 1904.01802"
    weight = 100.0

    def __init__(self, *, variant: Variant = "paper", gamma: float = 0.4, order: int = 2, embedding: int = 128) -> None:
        super().__init__()
        self.variant = choice(self.name, "variant", variant, ("paper", "repdistiller"))
        self.gamma = positive(self.name, "gamma", gamma)
        self.order = order
        self.embedding = int(positive(self.name, "embedding", embedding))
        self.student_embedding: nn.Module = nn.Identity()
        self.teacher_embedding: nn.Module = nn.Identity()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create the embeddings of the RepDistiller variant; the paper's has no parameters."""
        if self.variant == "repdistiller":
            self.student_embedding = nn.Linear(student.pooled.shape[1], self.embedding)
            self.teacher_embedding = nn.Linear(teacher.pooled.shape[1], self.embedding)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The loss of the pooled features."""
        if self.variant == "repdistiller":
            difference = (self.student_embedding(student.pooled) - self.teacher_embedding(teacher.pooled)).abs()
            return {"pooled": (difference[:-1] * difference[1:]).sum(dim=1).mean()}
        return {"pooled": F.mse_loss(self.correlation(student.pooled), self.correlation(teacher.pooled))}

    def correlation(self, features: Tensor) -> Tensor:
        """Taylor series of the Gaussian kernel of unit rows, [B, B]."""
        unit = F.normalize(features, dim=1)
        cosine = unit @ unit.t()
        terms = [(2 * self.gamma) ** p / math.factorial(p) * cosine**p for p in range(self.order + 1)]
        return math.exp(-2 * self.gamma) * sum(terms[1:], terms[0])
