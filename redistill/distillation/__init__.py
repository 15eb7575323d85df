"""Distillation methods, one a file, behind one interface: :class:`DistillationMethod`."""

from redistill.distillation.combination import Distillation
from redistill.distillation.distiller import Distiller
from redistill.distillation.method import (
    DistillationMethod,
    Losses,
    Need,
    Outputs,
    Targets,
    TrainingSet,
)
from redistill.distillation.registry import METHODS, create
from redistill.distillation.share import MAIN, Share

__all__ = [
    "MAIN",
    "METHODS",
    "Distillation",
    "DistillationMethod",
    "Distiller",
    "Losses",
    "Need",
    "Outputs",
    "Share",
    "Targets",
    "TrainingSet",
    "create",
]
