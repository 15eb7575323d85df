"""KD: softened class probabilities (Hinton, Vinyals and Dean, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.options import positive
from redistill.errors import TapError


class KD(DistillationMethod):
    """T^2 mean_b KL( softmax(z_t / T) || softmax(z_s / T) ).

    The published CIFAR recipe is T = 4 with 0.9 of this and 0.1 of the cross-entropy.
    """

    name = "kd"
    needs = frozenset({Need.LOGITS})
    paper = "Hinton, Vinyals and Dean, arXiv 1503.02531"
    weight = 1.0

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive(self.name, "temperature", temperature)

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that both networks name as many classes."""
        logit_pair(self.name, student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The divergence of the softened predictions."""
        return {"logits": softened_divergence(*logit_pair(self.name, student, teacher), self.temperature)}


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the batch mean of KL(teacher || student) at temperature T; logits [B, K]."""
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def logit_pair(method: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both networks' outputs, which must be there and of one shape."""
    if student.logits is None or teacher.logits is None:
        raise TapError(f"{method}: the networks' outputs are not computed; the method needs them from both")
    if student.logits.shape != teacher.logits.shape:
        raise TapError(
            f"{method}: the student's output is {tuple(student.logits.shape)} and the teacher's "
            f"{tuple(teacher.logits.shape)}; both must predict the same classes"
        )
    return student.logits, teacher.logits
