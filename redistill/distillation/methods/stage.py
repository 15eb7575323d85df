"""STAGE: the ablation of RED that matches the same stage along the other axis (ReDistill, arXiv 2406.03744)."""

from __future__ import annotations

from collections.abc import Sequence

from redistill.distillation.maps import pair, require_equal_widths
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.red import Distance, vector_distance
from redistill.distillation.options import choice


class Stage(DistillationMethod):
    """Distance between the spatial means [B, C] of same-named stages, averaged over the stages.

    Grids may differ, widths may not.
    """

    name = "stage"
    needs = frozenset({Need.STAGES})
    paper = "ReDistill, arXiv 2406.03744"
    weight = 1.0

    def __init__(self, *, distance: Distance = "cosine", stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.distance = choice(self.name, "distance", distance, ("cosine", "mse"))
        self.stages = tuple(stages)

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Check that same-named stages have as many channels."""
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            require_equal_widths(self.name, name, ours, theirs, "use red, which compares channel means")

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a stage, each divided by the number of stages."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        return {
            name: vector_distance(ours.mean(dim=(-2, -1)), theirs.mean(dim=(-2, -1)), self.distance) / len(pairs)
            for name, ours, theirs in pairs
        }
