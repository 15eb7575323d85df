"""ObstacleErrors: what stands in the way of a trace, with its reason and remedy."""

from __future__ import annotations

import torch
from torch import nn

from redistill.errors import ModelError
from redistill.internal.reasons import first_line
from redistill.tracing.guards import error_place

_CONTROL_FLOW = (
    "Control flow that depends on the data has no graph; move it into a module of its own and name its class in "
    "leaf_modules=, or wrap the model"
)
_UNSIZED = (
    "Give the part before it, as in redistill.transform(model.backbone, maps), or make that part a module of its own"
)
_OTHERWISE = "Move that line into a module of its own, which then stays one node of the graph, or wrap the model"

_WATCHERS = frozenset(("observer", "fake_quantize", "fake_quantizer", "_learnable_fake_quantize"))


class ObstacleError(Exception):
    """Something in the teacher's code that a graph cannot hold."""

    def __init__(self, reason: str, remedy: str = _OTHERWISE, place: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.place = place


class DataDependenceError(ObstacleError):
    """The teacher's code goes by what only the data decide: a value that Python reads, or the size of an output."""

    @classmethod
    def of_value(cls, reader: str) -> DataDependenceError:
        """Python reads a value."""
        return cls(f"{reader} reads the value of a tensor", _CONTROL_FLOW)

    @classmethod
    def of_size(cls, operation: str) -> DataDependenceError:
        """An operation yields as much as it finds."""
        return cls(f"how much {operation} yields depends on the data, so what follows has no size", _UNSIZED)


def check_autocast(device: torch.device) -> None:
    """Refuse what runs under autocast, which the caller's context was freed of before."""
    if any(torch.is_autocast_enabled(kind) for kind in {"cpu", device.type}):
        raise ObstacleError(
            "the forward switches torch.autocast on, which a graph does not record",
            "Leave autocast to the caller, or convert what needs it by .to(dtype)",
        )


def check_unprepared(model: nn.Module) -> None:
    """Refuse a model that has been prepared for quantisation.

    Raises:
        ModelError: observers or fake quantisation, of torch.ao or torchao.
    """
    for path, part in model.named_modules():
        if any(map(_watches, type(part).__mro__)):
            raise ModelError(
                f"{path or 'the model'} ({type(part).__name__}) is there to quantise: it reads the values of maps, and "
                "keeps the ranges of the teacher's; give the model before it is prepared, and quantise the student"
            )


def _watches(kind: type) -> bool:
    package, _, file = kind.__module__.partition(".")
    return package in ("torch", "torchao") and file.rpartition(".")[2] in _WATCHERS


def describe(error: BaseException) -> str:
    """An error's reason in one line, and the place in the teacher's code."""
    place = error.place if isinstance(error, ObstacleError) else None
    return f"{first_line(error)} ({place or error_place(error)})"


def remedy_of(error: BaseException) -> str:
    """What the user can do about it."""
    return error.remedy if isinstance(error, ObstacleError) else _OTHERWISE
