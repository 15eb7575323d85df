"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.kd import logit_pair
from redistill.distillation.options import positive


class DKD(DistillationMethod):
    """alpha TCKD + beta NCKD: target against the rest, and the rest among themselves.

        TCKD   T^2 KL of the two-way probabilities (p_y, 1 - p_y)
        NCKD   T^2 KL of the softmax over the classes other than y

    The published recipes let the weight rise over the first epochs: `warmup: 20` on CIFAR-100, 1 on ImageNet.
    A blended image has two targets: its loss is the mean of theirs, by their shares of the soft label.
    """

    name = "dkd"
    needs = frozenset({Need.LOGITS})
    paper = "Zhao et al., CVPR 2022, arXiv 2203.08679"
    weight = 1.0

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = positive(self.name, "temperature", temperature)

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that both networks name as many classes."""
        logit_pair(self.name, student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The two decoupled losses, weighted."""
        ours, theirs = (value / self.temperature for value in logit_pair(self.name, student, teacher))
        shares, classes = target_shares(targets.classes)
        found: Losses = {}
        for name, weight, divergence in (
            ("target", self.alpha, target_divergence),
            ("rest", self.beta, rest_divergence),
        ):
            columns = [divergence(ours, theirs, column) for column in classes.unbind(dim=1)]
            mean = (torch.stack(columns, dim=1) * shares).sum(dim=1).mean()
            found[name] = weight * self.temperature**2 * mean
        return found


def target_shares(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Shares and classes of each image's targets: [B, 1] of hard labels, [B, 2] of soft ones; shares sum to 1."""
    if classes.dim() == 1:
        return torch.ones_like(classes, dtype=torch.float32)[:, None], classes[:, None]
    shares, indices = classes.topk(2, dim=1)
    return shares / shares.sum(dim=1, keepdim=True), indices


def target_divergence(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """KL of (p_y, 1 - p_y), [B]; in logs throughout, so a sure teacher does no harm."""
    ours, theirs = _two_way(student, target), _two_way(teacher, target)
    return (theirs.exp() * (theirs - ours)).sum(dim=1)


def rest_divergence(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """KL of the softmax over all classes but the target, [B]."""
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, target[:, None], False)
    size = (len(student), student.shape[1] - 1)
    ours, theirs = (F.log_softmax(value[others].view(size), dim=1) for value in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(dim=1)


def _two_way(logits: Tensor, target: Tensor) -> Tensor:
    """log (p_y, 1 - p_y), [B, 2]."""
    others = logits.scatter(1, target[:, None], float("-inf")).logsumexp(dim=1)
    return F.log_softmax(torch.stack([logits.gather(1, target[:, None])[:, 0], others], dim=1), dim=1)
