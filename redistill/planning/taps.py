"""Taps: where the student changes its grid, and which node of the teacher has the same one.

The student's crossing is paired with the teacher's crossing between equal grids; where there is none, each side is
paired alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from redistill.errors import TapError
from redistill.internal.documents import read_yaml
from redistill.internal.text import format_shape
from redistill.planning.crossings import SIDES, Crossing, Places, grid_of
from redistill.planning.stages import Grid, StageGraph, coarse

TapPlaces = tuple[tuple[str, str], ...]
"""The places of taps, the student's and the teacher's of each."""
Grids = Mapping[str, Grid]
"""The grids that really arise in a student, by node; planned ones where that is not yet known."""


@dataclass(frozen=True)
class Tap:
    """A student node and a teacher node of equal grid, by place (``layer2.0 in``) and by node name."""

    name: str
    student: str
    teacher: str
    grid: Grid
    channels: int
    student_node: str
    teacher_node: str
    module: str
    side: str

    def __str__(self) -> str:
        return f"{self.student} <- {self.teacher} {format_shape((*self.grid, self.channels))}"


def needs_tap(crossing: Crossing, source_factor: int, target_factor: int) -> bool:
    """A crossing where the student changes its grid and is not the teacher's own."""
    moves = any(s != 1 for s in crossing.transition.student_strides(source_factor, target_factor))
    return moves and (source_factor, target_factor) != (1, 1)


def find_partner(
    crossing: Crossing,
    side: str,
    factors: Sequence[int],
    crossings: Sequence[Crossing],
    stages: StageGraph,
    grids: Grids | None = None,
) -> tuple[Crossing, str] | None:
    """The teacher's crossing and side with the grid that ``crossing`` has in a student with these ``factors``.

    A crossing between the same two grids comes first, then one that has the grid on the same side, then on the other;
    always one of the same direction, down or up.
    """
    if not crossing.has(side):
        return None
    wanted = {s: _student_grid(crossing, s, factors, stages, grids) for s in SIDES}
    candidates = [
        (other, at)
        for at in (side, *(s for s in SIDES if s != side))
        for other in crossings
        if other.goes_up == crossing.goes_up and other.has(at) and grid_of(other, at, stages) == wanted[side]
    ]
    both = [(o, at) for o, at in candidates if at == side and all(grid_of(o, s, stages) == wanted[s] for s in SIDES)]
    return next(iter(both or candidates), None)


def _student_grid(
    crossing: Crossing, side: str, factors: Sequence[int], stages: StageGraph, grids: Grids | None
) -> Grid:
    planned = coarse(grid_of(crossing, side, stages), factors[crossing.stage(side)])
    return (grids or {}).get(crossing.node(side), planned)


def choose_taps(
    crossings: Sequence[Crossing], factors: Sequence[int], stages: StageGraph, grids: Grids | None = None
) -> tuple[Tap, ...]:
    """The automatic taps of a student with these pooling ``factors`` (one for each stage, the fixed ones too)."""
    taps: dict[str, Tap] = {}
    for crossing in crossings:
        if not needs_tap(crossing, factors[crossing.source], factors[crossing.target]):
            continue
        for side in SIDES:
            partner = find_partner(crossing, side, factors, crossings, stages, grids)
            node = crossing.node(side)
            name = tap_name(crossing.module, side)
            if partner is not None and node not in taps:
                other, at = partner
                grid = _student_grid(crossing, side, factors, stages, grids)
                taps[node] = Tap(
                    name, f"{crossing.module} {side}", f"{other.module} {at}", grid, crossing.channels(side),
                    node, other.node(at), crossing.module, side,
                )  # fmt: skip
    return tuple(taps.values())


def tap_name(module: str, side: str) -> str:
    """The name under which the tap's RED block is registered: ``layer2_0_in``."""
    return f"{module}_{side}".replace(".", "_")


def tap_activity(
    crossing: Crossing, side: str, crossings: Sequence[Crossing], stages: StageGraph, choices: Sequence[Sequence[int]]
) -> np.ndarray:
    """For each pair of factors of the crossing's two stages, whether a tap stands on that side."""
    active = np.zeros((len(choices[crossing.source]), len(choices[crossing.target])), dtype=bool)
    for i, source in enumerate(choices[crossing.source]):
        for j, target in enumerate(choices[crossing.target]):
            factors = [1] * len(stages.stages)
            factors[crossing.source], factors[crossing.target] = source, target
            if needs_tap(crossing, source, target):
                active[i, j] = find_partner(crossing, side, factors, crossings, stages) is not None
    return active


def read_taps(taps: str | Path | Sequence[Sequence[str]]) -> TapPlaces:
    """Read taps written by hand: pairs of places, or a YAML file of ``{student: layer2.0 in, teacher: layer3.0 in}``.

    Raises:
        TapError: the file is missing, or what is given is not of that form.
    """
    entries: Any = taps
    if isinstance(taps, (str, Path)):
        entries = read_yaml(Path(taps), TapError)
    pairs = [_pair(entry) for entry in entries] if isinstance(entries, (list, tuple)) else [None]
    found = tuple(pair for pair in pairs if pair is not None)
    if len(found) < len(pairs):
        where = taps if isinstance(taps, (str, Path)) else "taps"
        raise TapError(f'{where} must be a list of {{student: "layer2.0 in", teacher: "layer3.0 in"}} entries')
    return found


def _pair(entry: Any) -> tuple[str, str] | None:
    """The two places of one entry; None if it is not of that form."""
    if isinstance(entry, Mapping) and set(entry) == {"student", "teacher"}:
        entry = (entry["student"], entry["teacher"])
    if isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(place, str) for place in entry):
        return (entry[0], entry[1])
    return None


def resolve_taps(
    given: TapPlaces,
    graph_module: GraphModule,
    factors: Sequence[int],
    stages: StageGraph,
    grids: Grids | None = None,
) -> tuple[Tap, ...]:
    """Taps written by hand, checked: both places exist and have equal grids.

    Raises:
        TapError: an unknown place (the nearest one is named) or unequal grids.
    """
    places = Places(graph_module, stages)
    taps = []
    for at_student, at_teacher in given:
        student, teacher = (_resolve_place(place, places) for place in (at_student, at_teacher))
        channels, *grid = stages.record.values[student.name][1:]
        student_grid = (grids or {}).get(student.name, coarse(grid, factors[stages.stage_of[student.name]]))
        teacher_grid = tuple(stages.record.values[teacher.name][2:])
        if student_grid != teacher_grid:
            raise TapError(
                f"tap {at_student!r} has grid {format_shape(student_grid)} in the student, "
                f"{at_teacher!r} has {format_shape(teacher_grid)} in the teacher; choose places of equal grid"
            )
        module, _, side = at_student.rpartition(" ")
        taps.append(
            Tap(
                tap_name(module, side),
                at_student,
                at_teacher,
                student_grid,
                channels,
                student.name,
                teacher.name,
                module,
                side,
            )
        )
    return tuple(taps)


def _resolve_place(place: str, places: Places) -> Node:
    module, _, side = place.rpartition(" ")
    known = sorted({path for paths in places.paths.values() for path in paths})
    if side not in SIDES or module not in known:
        near = difflib.get_close_matches(module or place, known, 1)
        hint = f"; did you mean '{near[0]} {side if side in SIDES else 'out'}'?" if near else ""
        raise TapError(f"no such place {place!r}: write a module's path and 'in' or 'out'{hint}")
    found = places.maps(module, side)
    if len(found) != 1:
        raise TapError(f"{place!r} is {len(found)} feature maps; a tap needs a module with exactly one there")
    (node,) = found
    if not places.is_tappable(node):
        shape = format_shape(places.stages.record.values[node.name])
        raise TapError(f"{place!r} is {shape}; a tap needs maps whose channels stand before the sides of their grid")
    return node
