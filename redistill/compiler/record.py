"""The record: what a student knows of itself, and how that is written into its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redistill.compiler.request import Request
from redistill.memory.lifetimes import MemoryProfile
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.plan import PoolingPlan
from redistill.planning.stages import Stage
from redistill.planning.taps import Tap
from redistill.tracing.arguments import write_arguments
from redistill.tracing.call import Call


@dataclass(frozen=True)
class InputSpec:
    """Shape and type of an example input."""

    shape: tuple[int, ...]
    dtype: str

    def example(self) -> Tensor:
        """Zeros of that shape and type."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from and how it was made: all that is needed to make it again.

    ``part`` is the path of what was planned within the teacher, where that is not the whole.
    """

    teacher: str
    model: str | None
    weights: str
    inputs: tuple[InputSpec, ...]
    request: Request
    notes: tuple[str, ...]
    seconds: float
    part: str | None = None


@dataclass(frozen=True)
class StudentRecord:
    """What a student knows of itself."""

    plan: PoolingPlan
    taps: tuple[Tap, ...]
    stages: tuple[Stage, ...]
    teacher_profile: MemoryProfile
    profile: MemoryProfile
    reentry: str | None
    provenance: Provenance
    call: Call
    patches: PatchPlan | None = None
    nothing_in_place: int | None = None
    own_order: int | None = None

    def example(self, device: torch.device | None = None) -> dict[str, Any]:
        """The teacher's arguments, by parameter, with zeros for tensors."""
        return self.call.example([spec.example().to(device) for spec in self.provenance.inputs])


def to_recipe(record: StudentRecord) -> dict[str, Any]:
    """The record as plain data: what is needed to make the student again, and what a reader wants to know."""
    origin = record.provenance
    return {
        "teacher": origin.teacher,
        "model": origin.model,
        "part": origin.part,
        "weights_of_teacher": origin.weights,
        "inputs": [{"shape": list(spec.shape), "dtype": spec.dtype} for spec in origin.inputs],
        "arguments": write_arguments(record.call.arguments),
        "request": origin.request.to_plain(),
        "peak_bytes": {"teacher": record.teacher_profile.peak_bytes, "student": record.plan.peak_bytes},
        "plan": [
            {"stage": s.name, "grid": list(s.grid), "factor": record.plan.by_stage[s.index]}
            for s in record.stages
            if not s.boundary
        ],
        "taps": [{"student": tap.student, "teacher": tap.teacher} for tap in record.taps],
        "patches": record.patches.to_plain() if record.patches is not None else None,
        "notes": list(origin.notes),
    }
