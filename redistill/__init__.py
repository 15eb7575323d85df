"""Redistill: memory-bounded students of convolutional networks and UNet denoisers.

What is public is listed in ``__all__`` and imported where it is first asked for, so that ``import redistill`` itself
costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redistill.compiler.fitting import fit
    from redistill.compiler.loading import load_student
    from redistill.compiler.pipeline import transform
    from redistill.distillation.catalogue import methods
    from redistill.distillation.distiller import Distiller
    from redistill.errors import InfeasibleBudgetError, RedistillError
    from redistill.memory.conventions import Convention
    from redistill.memory.lifetimes import MemoryProfile
    from redistill.memory.meter import measure
    from redistill.memory.profiling import profile
    from redistill.student import Student

__version__ = "0.2.0.dev0"

__all__ = [
    "Convention",
    "Distiller",
    "InfeasibleBudgetError",
    "MemoryProfile",
    "RedistillError",
    "Student",
    "__version__",
    "fit",
    "load_student",
    "measure",
    "methods",
    "profile",
    "transform",
]

_HOMES = {
    "Convention": "memory.conventions",
    "Distiller": "distillation.distiller",
    "InfeasibleBudgetError": "errors",
    "MemoryProfile": "memory.lifetimes",
    "RedistillError": "errors",
    "Student": "student",
    "fit": "compiler.fitting",
    "load_student": "compiler.loading",
    "measure": "memory.meter",
    "methods": "distillation.catalogue",
    "profile": "memory.profiling",
    "transform": "compiler.pipeline",
}
_ROOMS = frozenset({"data", "distillation", "errors", "export", "models", "quantization"})
"""Packages that are there after ``import redistill`` alone."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
