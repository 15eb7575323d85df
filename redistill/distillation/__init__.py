"""Distillation methods, one a file, behind one interface: :class:`DistillationMethod`."""

from redistill.distillation.combination import MAIN, METHODS, Distillation, Share, create
from redistill.distillation.method import (
    DistillationMethod,
    Losses,
    Need,
    Outputs,
    Targets,
    TrainingSet,
)

__all__ = [
    "MAIN",
    "METHODS",
    "Distillation",
    "DistillationMethod",
    "Losses",
    "Need",
    "Outputs",
    "Share",
    "Targets",
    "TrainingSet",
    "create",
]
