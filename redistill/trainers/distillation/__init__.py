"""Distillation methods, one a file, behind one interface: :class:`DistillationMethod`."""

from redistill.trainers.distillation.combination import METHODS, Distillation, Share, create
from redistill.trainers.distillation.method import (
    DistillationMethod,
    Losses,
    Need,
    Outputs,
    Targets,
    TrainingSet,
)

__all__ = [
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
