"""Re-entry: our own method. Where the student's grid first meets the teacher's again, match the whole map.

From the re-entry node on the student *is* the teacher: the same modules, weights and grids. Whatever the student loses
by pooling harder is therefore a difference of this one map, and a student that reproduces it reproduces the teacher's
output. The loss needs no labels.
"""

from __future__ import annotations

from torch import Tensor

from redistill.distillation.maps import describe
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.errors import TapError

TINY = 1e-12


class Reentry(DistillationMethod):
    """mean (f_s - f_t)^2 / mean f_t^2: the share of the teacher's power that the student misses.

    A tenth or two soon after the start, which a cross-entropy drowns: with weight 1 its students are worse than with 20
    or more, from where on they hardly differ.
    """

    name = "reentry"
    needs = frozenset({Need.REENTRY})
    weight = 50.0

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that the student has a re-entry node, of the teacher's shape."""
        _maps(student, teacher)

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The relative squared error of the whole map."""
        return {"map": relative_error(*_maps(student, teacher))}


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s - t)^2 / mean t^2, the share of the teacher's power that the student misses."""
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(TINY)


def _maps(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    if student.reentry is None or teacher.reentry is None:
        raise TapError(
            "reentry: the student's grid never meets the teacher's again; use red, whose taps pair equal grids, or kd"
        )
    if student.reentry.shape != teacher.reentry.shape:
        raise TapError(
            f"reentry: the student's map is {describe(student.reentry)} and the teacher's {describe(teacher.reentry)}; "
            "this method needs a student of the teacher's own architecture"
        )
    return student.reentry, teacher.reentry
