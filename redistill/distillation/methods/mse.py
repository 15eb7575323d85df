"""MSE: the outputs themselves, for denoisers (predicted noise) and for logits."""

from __future__ import annotations

from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.kd import logit_pair


class MSE(DistillationMethod):
    """mean (z_s - z_t)^2 over all elements of the output."""

    name = "mse"
    needs = frozenset({Need.LOGITS})
    weight = 1.0

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that both outputs have one shape."""
        logit_pair(self.name, student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The mean squared difference."""
        return {"logits": F.mse_loss(*logit_pair(self.name, student, teacher))}
