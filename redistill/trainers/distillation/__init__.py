"""Distillation methods, one a file, behind one interface: :class:`DistillationMethod`."""

from redistill.trainers.distillation.combination import MAIN, METHODS, Distillation, Share, create
from redistill.trainers.distillation.method import (
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
