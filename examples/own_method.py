"""Add a distillation method of one's own; no file of the library changes.

It can also be named in a configuration: distillation.methods={"own_method:SortedLogits": {"weight": 2}}, with --trust.
"""

import digits
import torch
from torch.nn import functional as F

import redistill
from redistill.distillation import DistillationMethod, Losses, Need, Outputs, Targets


class SortedLogits(DistillationMethod):
    """Compare how sure both networks are, whatever of: mean |sort(z_s) - sort(z_t)|^p, per image."""

    name = "sorted"
    needs = frozenset({Need.LOGITS})
    weight = 0.5

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One scalar a place; their weighted sum is what is minimised."""
        ours, theirs = (network.logits.sort(dim=1).values for network in (student, teacher))
        return {"logits": (ours - theirs).abs().pow(self.power).mean()}


if __name__ == "__main__":
    images, labels, *_ = digits.load()
    teacher = digits.train(digits.network(), images, labels, epochs=1)
    student = redistill.transform(teacher, images[:1], budget="2x")
    distil = redistill.Distiller(student, teacher, {"kd": {}, SortedLogits: {"power": 1.0}}, example=images[:32])
    logits, losses = distil(images[:64])
    (F.cross_entropy(logits, labels[:64]) + sum(losses.values())).backward()
    print({name: round(loss.item(), 3) for name, loss in losses.items()})
    assert torch.isfinite(student.get_parameter("0.0.weight").grad).all()
