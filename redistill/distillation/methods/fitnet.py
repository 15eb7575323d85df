"""FitNet: hints from a middle stage (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn import functional as F

from redistill.distillation.maps import key, match_size, match_width, pair
from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet


class FitNet(DistillationMethod):
    """mean ( R(f_s) - f_t )^2 at the hint, with R a 1x1 convolution and a batch norm.

    R ends without an activation, so that it can reproduce linear (signed) stage outputs too. The hint defaults to the
    middle stage.
    """

    name = "fitnet"
    needs = frozenset({Need.STAGES})
    paper = "Romero et al., ICLR 2015, arXiv 1412.6550"
    weight = 100.0

    def __init__(self, *, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.regressors = nn.ModuleDict()

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create one regressor a hint."""
        pairs = pair(self.name, student.stages, teacher.stages, self.stages)
        if not self.stages:
            pairs = [pairs[(len(pairs) - 1) // 2]]
            self.stages = (pairs[0][0],)
        self.regressors = nn.ModuleDict(
            {key(name): match_width(ours, theirs, norm=True) for name, ours, theirs in pairs}
        )

    def losses(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """One loss a hint."""
        found: Losses = {}
        for name, ours, theirs in pair(self.name, student.stages, teacher.stages, self.stages):
            ours, theirs = match_size(ours, theirs)
            found[name] = F.mse_loss(self.regressors[key(name)](ours), theirs)
        return found
