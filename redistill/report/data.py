"""What the reports show, as plain data: a teacher beside its student, stage by stage and step by step."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TypeVar

import torch

from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import MemoryProfile, Step
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.plan import PoolingPlan
from redistill.planning.stages import Stage
from redistill.planning.taps import Tap
from redistill.report.tiles import origin_of, tile_of

RED_BLOCKS = "red"  # the module under which a student keeps its RED blocks
Grid = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """A teacher beside its student: all that a report needs, free of the graphs.

    ``title`` is the model's spec, ``input`` its shape as text (``3x224x224``), ``dtype`` the type that activations are
    counted as (None: as traced), ``seconds`` the time that the transformation took, ``nothing_in_place`` the teacher's
    peak were nothing overwritten (None where that is how it is counted), ``own_order`` its peak before its operations
    were put into another order (None where they were not).
    """

    title: str
    input: str
    convention: Convention
    dtype: str | None
    teacher: MemoryProfile
    student: MemoryProfile
    stages: tuple[Stage, ...]
    plan: PoolingPlan
    taps: tuple[Tap, ...]
    notes: tuple[str, ...]
    seconds: float
    weights: str = ""
    patches: PatchPlan | None = None
    nothing_in_place: int | None = None
    own_order: int | None = None

    @property
    def ratio(self) -> float:
        """How many times less memory the student needs."""
        return self.teacher.peak_bytes / max(self.student.peak_bytes, 1)

    @property
    def is_met(self) -> bool | None:
        """Whether the student fits the budget; None where none was set."""
        return None if self.plan.limit is None else self.student.peak_bytes <= self.plan.limit


@dataclass(frozen=True)
class StageRow:
    """One stage of both networks; peaks are the most bytes alive while the stage runs, whoever owns them."""

    name: str
    teacher_grid: Grid
    student_grid: Grid
    factor: int
    teacher_peak: int
    student_peak: int
    teacher_macs: int
    student_macs: int
    boundary: bool
    fixed: str | None

    @property
    def label(self) -> str:
        """The name, with the role of a boundary."""
        if not self.boundary:
            return self.name
        return f"{self.name} ({'input' if self.fixed == 'it is the input' else 'output'})"


@dataclass(frozen=True)
class Group:
    """Steps of one module, next to each other, from ``first`` to ``last``, both included."""

    name: str
    first: int
    last: int
    peak_bytes: int
    macs: int


def compare(
    title: str,
    input: str,
    teacher: MemoryProfile,
    student: MemoryProfile,
    stages: Sequence[Stage],
    plan: PoolingPlan,
    taps: Sequence[Tap] = (),
    notes: Sequence[str] = (),
    seconds: float = 0.0,
    weights: str = "",
) -> Comparison:
    """A comparison whose convention and element type are the teacher's own."""
    return Comparison(
        title, input, teacher.convention, teacher.dtype, teacher, student,
        tuple(stages), plan, tuple(taps), tuple(notes), seconds, weights,
    )  # fmt: skip


def stage_rows(comparison: Comparison) -> tuple[StageRow, ...]:
    """The stages in data-flow order with what each needs and computes in teacher and student."""
    totals = [_stage_totals(p, comparison.stages) for p in (comparison.teacher, comparison.student)]
    return tuple(
        StageRow(
            stage.name, stage.grid, stage.student_grid(factor), factor,
            totals[0][index][0], totals[1][index][0], totals[0][index][1], totals[1][index][1],
            stage.boundary, stage.fixed,
        )
        for index, (stage, factor) in enumerate(zip(comparison.stages, comparison.plan.by_stage, strict=True))
    )  # fmt: skip


def stage_of_steps(profile: MemoryProfile, stages: Sequence[Stage]) -> tuple[int, ...]:
    """For each step the position of its stage; a step of no stage (a RED block, the head) joins the one before.

    Steps before the first known one belong to the first stage; pieces to that of the operation they are pieces of.
    """
    known = {node: position for position, stage in enumerate(stages) for node in stage.nodes}
    found, current = [], 0
    for step in profile.timeline:
        current = known.get(step.node, known.get(origin_of(step.node), current))
        found.append(current)
    return tuple(found)


def _stage_totals(profile: MemoryProfile, stages: Sequence[Stage]) -> list[tuple[int, int]]:
    peaks, macs = [0] * len(stages), [0] * len(stages)
    for position, step in zip(stage_of_steps(profile, stages), profile.timeline, strict=True):
        peaks[position] = max(peaks[position], step.live_bytes)
        macs[position] += step.macs
    return list(zip(peaks, macs, strict=True))


def is_red_block(step: Step) -> bool:
    """Whether an operation belongs to a RED block of the student."""
    return step.module.split(".")[0] == RED_BLOCKS


def red_macs(profile: MemoryProfile) -> int:
    """Multiply-accumulates of a student's RED blocks."""
    return sum(step.macs for step in profile.timeline if is_red_block(step))


def align_steps(teacher: MemoryProfile, student: MemoryProfile) -> tuple[tuple[int | None, int | None], ...]:
    """Both timelines on one axis: pairs of steps of the same node, and the steps that only one of them has.

    Beside the pieces of a region the teacher's steps are spread out in their order.
    """
    ours, theirs = ([step.node for step in p.timeline] for p in (teacher, student))
    columns: list[tuple[int | None, int | None]] = []
    for tag, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if tag == "equal":
            columns += zip(range(a, b), range(c, d), strict=True)
        elif 0 < b - a <= d - c and any(map(tile_of, theirs[c:d])):
            columns += [(a + (j - c) * (b - a) // (d - c), j) for j in range(c, d)]
        else:
            columns += [(i, None) for i in range(a, b)]
            columns += [(None, j) for j in range(c, d)]
    return tuple(columns)


def group_steps(profile: MemoryProfile, most: int = 40) -> tuple[Group, ...]:
    """The timeline by module; the longest modules are opened as far as leaves at most ``most`` groups.

    A step of no module joins the module before it.
    """
    opened: set[str] = set()
    tried: set[str] = set()
    groups = _group_by(profile, opened)
    while longest := _longest(groups, tried, len(profile.timeline) // 6):
        tried.add(longest)
        finer = _group_by(profile, opened | {longest})
        if len(finer) <= most:
            opened.add(longest)
            groups = finer
    return groups


def _longest(groups: Sequence[Group], tried: set[str], least: int) -> str | None:
    """The longest group that was not tried, if it has more than ``least`` steps."""
    left = [g for g in groups if g.name not in tried and g.last - g.first + 1 > max(least, 1)]
    return max(left, key=lambda g: g.last - g.first).name if left else None


def _group_by(profile: MemoryProfile, opened: set[str]) -> tuple[Group, ...]:
    """Neighbours that share the shortest prefix of their module's path that is not ``opened``."""
    names, current = [], "input"
    for step in profile.timeline:
        current = _prefix(step.module, opened) or current
        names.append(current)
    groups = []
    for name, run in groupby(range(len(names)), key=names.__getitem__):
        members = list(run)
        steps = [profile.timeline[t] for t in members]
        groups.append(
            Group(name, members[0], members[-1], max(s.live_bytes for s in steps), sum(s.macs for s in steps))
        )
    return tuple(groups)


def _prefix(module: str, opened: set[str]) -> str:
    parts = module.split(".")
    prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix not in opened), module)


def runs(values: Sequence[T]) -> list[tuple[T, int, int]]:
    """Equal neighbours as (value, first position, one past the last).

    >>> runs([0, 0, 1, 0])
    [(0, 0, 2), (1, 2, 3), (0, 3, 4)]
    """
    found = []
    for value, run in groupby(range(len(values)), key=values.__getitem__):
        members = list(run)
        found.append((value, members[0], members[-1] + 1))
    return found


def versions() -> dict[str, str]:
    """What the figures were computed with."""
    return {"redistill": _installed_version(), "torch": str(torch.__version__), "python": platform.python_version()}


def _installed_version() -> str:
    try:
        return version("redistill")
    except PackageNotFoundError:
        return "unknown"
