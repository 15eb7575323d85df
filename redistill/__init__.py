"""Redistill: memory-bounded students of convolutional networks and UNet denoisers."""

from redistill.compiler.fitting import fit
from redistill.compiler.pipeline import load_student, transform
from redistill.errors import InfeasibleBudgetError, RedistillError
from redistill.memory.conventions import MemoryProfile
from redistill.memory.meter import measure
from redistill.memory.profiling import profile
from redistill.student import Student

__version__ = "0.1.0"

__all__ = [
    "InfeasibleBudgetError",
    "MemoryProfile",
    "RedistillError",
    "Student",
    "__version__",
    "fit",
    "load_student",
    "measure",
    "profile",
    "transform",
]
