"""What a student's recipe consists of, field by field: a stranger's is checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from redistill.config.checks import Count, Factor, Positive, Section, Side
from redistill.config.files import read
from redistill.errors import ConfigError

LARGEST_INPUT = 1 << 30
"""Values in an example input."""


@dataclass(frozen=True)
class InputFields(Section):
    """An example input."""

    shape: tuple[Side, ...]
    dtype: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(f"inputs: {self.dtype[:40]!r} is no type of numbers")
        if math.prod(self.shape) > LARGEST_INPUT:
            raise ConfigError(f"inputs: {math.prod(self.shape):,} values are more than {LARGEST_INPUT:,}")


@dataclass(frozen=True)
class StageFields(Section):
    """A stage of the teacher and its pooling factor."""

    stage: str
    grid: tuple[Positive, ...]
    factor: Factor


@dataclass(frozen=True)
class TapFields(Section):
    """A tap's two places."""

    student: str
    teacher: str


@dataclass(frozen=True)
class PeakFields(Section):
    """Peaks in bytes."""

    teacher: Count
    student: Count


@dataclass(frozen=True)
class WeightsFields(Section):
    """The weights' file and checksum."""

    file: Literal["weights.safetensors"]
    sha256: str


@dataclass(frozen=True)
class RequestFields(Section):
    """What was asked for."""

    budget: str | None = None
    factors: tuple[Factor, ...] | None = None
    convention: Any = "deploy"
    objective: str = "macs"
    taps: Any = "auto"
    init: Literal["gentle", "default", "light"] = "gentle"
    dtype: str | None = None
    reorder: bool = False


@dataclass(frozen=True)
class RecipeFields(Section):
    """A whole recipe."""

    format: int
    teacher: str
    inputs: tuple[InputFields, ...]
    request: RequestFields
    peak_bytes: PeakFields
    plan: tuple[StageFields, ...]
    taps: tuple[TapFields, ...]
    weights: WeightsFields
    model: str | None = None
    part: str | None = None
    weights_of_teacher: str | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seal: str = ""


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Raise where a field is missing, of a wrong type or out of range.

    What is not listed here is read, and checked, by what it belongs to: patches, the arguments of a call, levers.

    Raises:
        ConfigError: naming the field.
    """
    request = recipe["request"]
    asked = _known(RequestFields, request) if isinstance(request, Mapping) else request
    read(RecipeFields, {**_known(RecipeFields, recipe), "request": asked})


def _known(kind: type[Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in raw.items() if key in names}
