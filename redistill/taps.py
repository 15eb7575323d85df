"""Taps: where the student changes its grid, and which node of the teacher has the same one.

A *crossing* is a module whose operations all move from one stage to another (``layer2.0``: its strided convolution and
its strided shortcut). The student's crossing is paired with the teacher's crossing between equal grids; where there is
none, each side is paired alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.fx import GraphModule, Node

from redistill import operators
from redistill.errors import TapError
from redistill.stages import StageGraph, Transition, common_path, is_map

Grid = tuple[int, int]
SIDES = ("in", "out")


@dataclass(frozen=True)
class Crossing:
    """A module that moves from stage ``source`` to stage ``target``; nodes by name, channels on either side."""

    module: str
    kind: str
    source: int
    target: int
    transition: Transition
    in_node: str
    out_node: str
    in_channels: int
    out_channels: int

    @property
    def goes_up(self) -> bool:
        """Whether it belongs to a decoder."""
        return self.kind in ("up", "tail")

    def has(self, side: str) -> bool:
        """Whether that side may be tapped: not the image before a stem, not the output after a tail."""
        return (self.kind, side) not in (("stem", "in"), ("tail", "out"))

    def node(self, side: str) -> str:
        """The node on that side."""
        return self.in_node if side == "in" else self.out_node

    def stage(self, side: str) -> int:
        """The stage on that side."""
        return self.source if side == "in" else self.target

    def channels(self, side: str) -> int:
        """The channels on that side."""
        return self.in_channels if side == "in" else self.out_channels


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


def find_crossings(graph_module: GraphModule, stages: StageGraph) -> tuple[Crossing, ...]:
    """The crossings of a network in data-flow order; one for each pair of grids, the first where there are several."""
    places = _Places(graph_module, stages)
    groups: dict[tuple[int, int], list[Transition]] = {}
    for transition in stages.transitions:
        if transition.source != transition.target and transition.operator != "resize":
            groups.setdefault((transition.source, transition.target), []).append(transition)
    found: dict[tuple[Grid, Grid, bool], Crossing] = {}
    for (source, target), group in groups.items():
        crossing = places.crossing(group) or places.crossing(group[:1])
        if crossing is not None:
            key = (stages.stages[source].grid, stages.stages[target].grid, crossing.goes_up)
            found.setdefault(key, crossing)
    return tuple(found.values())


class _Places:
    """Finds, for a group of transitions, the narrowest module around them with one map in and one map out."""

    def __init__(self, graph_module: GraphModule, stages: StageGraph) -> None:
        self.stages = stages
        self.nodes = {n.name: n for n in graph_module.graph.nodes}
        self.paths = {n: _module_paths(n) for n in graph_module.graph.nodes}

    def crossing(self, group: Sequence[Transition]) -> Crossing | None:
        """The narrowest candidate; among equally narrow ones the innermost."""
        innermost = common_path([t.module for t in group])
        candidates: list[Crossing] = []
        path = innermost
        while path:
            candidate = self._candidate(path, group[0])
            if candidate is not None:
                candidates.append(candidate)
            path = path.rpartition(".")[0]
        return min(candidates, key=self._width, default=None)

    def _width(self, crossing: Crossing) -> int:
        """Values on both sides; the image at a stem does not count, for it is not tapped."""
        grids = {side: _grid(crossing, side, self.stages) for side in SIDES if crossing.has(side)}
        return sum(crossing.channels(side) * grid[0] * grid[1] for side, grid in grids.items())

    def _candidate(self, path: str, transition: Transition) -> Crossing | None:
        inside = {n for n, paths in self.paths.items() if path in paths}
        entering = {s for n in inside for s in n.all_input_nodes if s not in inside and self._is_map(s)}
        leaving = {n for n in inside if self._is_map(n) and any(u not in inside for u in n.users)}
        if len(entering) != 1 or len(leaving) != 1:
            return None
        (source,), (target,) = entering, leaving
        stage_of = self.stages.stage_of
        if (stage_of.get(source.name), stage_of.get(target.name)) != (transition.source, transition.target):
            return None
        return Crossing(
            path, transition.kind, transition.source, transition.target, transition,
            source.name, target.name, self._shape(source)[1], self._shape(target)[1],
        )  # fmt: skip

    def _is_map(self, node: Node) -> bool:
        return is_map(self._shape(node)) and node.name in self.stages.stage_of

    def _shape(self, node: Node) -> Any:
        return self.stages.record.values.get(node.name)


def _module_paths(node: Node) -> set[str]:
    """Every module whose forward the node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    return {str(path) for path, _ in stack.values()} | ({operators.module_path(node)} - {""})


def needs_tap(crossing: Crossing, source_factor: int, target_factor: int) -> bool:
    """A crossing where the student changes its grid and is not the teacher's own."""
    moves = crossing.transition.student_stride(source_factor, target_factor) != 1
    return moves and (source_factor, target_factor) != (1, 1)


def find_partner(
    crossing: Crossing, side: str, factors: Sequence[int], crossings: Sequence[Crossing], stages: StageGraph
) -> tuple[Crossing, str] | None:
    """The teacher's crossing and side with the grid that ``crossing`` has in a student with these ``factors``.

    A crossing between the same two grids comes first, then one that has the grid on the same side, then on the other;
    always one of the same direction, down or up.
    """
    if not crossing.has(side):
        return None
    wanted = {s: stages.stages[crossing.stage(s)].student_grid(factors[crossing.stage(s)]) for s in SIDES}
    candidates = [
        (other, at)
        for at in (side, *(s for s in SIDES if s != side))
        for other in crossings
        if other.goes_up == crossing.goes_up and other.has(at) and _grid(other, at, stages) == wanted[side]
    ]
    both = [(o, at) for o, at in candidates if at == side and all(_grid(o, s, stages) == wanted[s] for s in SIDES)]
    return (both or candidates or [None])[0]


def _grid(crossing: Crossing, side: str, stages: StageGraph) -> Grid:
    return stages.stages[crossing.stage(side)].grid


def choose_taps(
    crossings: Sequence[Crossing], factors: Sequence[int], stages: StageGraph, without: frozenset[str] = frozenset()
) -> tuple[Tap, ...]:
    """The automatic taps of a student with these pooling ``factors`` (one for each stage, the fixed ones too)."""
    taps: dict[str, Tap] = {}
    for crossing in crossings:
        if not needs_tap(crossing, factors[crossing.source], factors[crossing.target]):
            continue
        for side in SIDES:
            partner = find_partner(crossing, side, factors, crossings, stages)
            node = crossing.node(side)
            name = tap_name(crossing.module, side)
            if partner is not None and node not in taps and name not in without:
                other, at = partner
                grid = stages.stages[crossing.stage(side)].student_grid(factors[crossing.stage(side)])
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


def read_taps(path: str | Path) -> tuple[dict[str, str], ...]:
    """Read a tap file: a YAML list of ``{student: "layer2.0 in", teacher: "layer3.0 in"}``.

    Raises:
        TapError: the file is missing or not of that form.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TapError(f"cannot read taps from {path}: {error}") from error
    well_formed = isinstance(entries, list) and all(
        isinstance(e, dict) and set(e) == {"student", "teacher"} and all(isinstance(v, str) for v in e.values())
        for e in entries
    )
    if not well_formed:
        raise TapError(f'{path} must be a list of {{student: "layer2.0 in", teacher: "layer3.0 in"}} entries')
    return tuple(entries)


def resolve_taps(
    entries: Sequence[dict[str, str]], graph_module: GraphModule, student_shapes: dict[str, Any], stages: StageGraph
) -> tuple[Tap, ...]:
    """Taps written by hand, checked: both places exist and have equal grids.

    Raises:
        TapError: an unknown place (the nearest one is named) or unequal grids.
    """
    places = _Places(graph_module, stages)
    taps = []
    for entry in entries:
        student, teacher = (_resolve_place(entry[role], places) for role in ("student", "teacher"))
        student_grid = student_shapes[student.name][2:]
        teacher_grid = stages.record.values[teacher.name][2:]
        if student_grid != teacher_grid:
            raise TapError(
                f"tap {entry['student']!r} has grid {_by(student_grid)} in the student, {entry['teacher']!r} has "
                f"{_by(teacher_grid)} in the teacher; choose places of equal grid"
            )
        module, _, side = entry["student"].rpartition(" ")
        taps.append(
            Tap(
                tap_name(module, side), entry["student"], entry["teacher"], tuple(student_grid),
                student_shapes[student.name][1], student.name, teacher.name, module, side,
            )  # fmt: skip
        )
    return tuple(taps)


def _resolve_place(place: str, places: _Places) -> Node:
    module, _, side = place.rpartition(" ")
    known = sorted({path for paths in places.paths.values() for path in paths})
    if side not in SIDES or module not in known:
        near = difflib.get_close_matches(module or place, known, 1)
        hint = f"; did you mean '{near[0]} {side if side in SIDES else 'out'}'?" if near else ""
        raise TapError(f"no such place {place!r}: write a module's path and 'in' or 'out'{hint}")
    inside = [n for n, paths in places.paths.items() if module in paths]
    if side == "in":
        found = {s for n in inside for s in n.all_input_nodes if s not in inside and places._is_map(s)}
    else:
        found = {n for n in inside if places._is_map(n) and any(u not in inside for u in n.users)}
    if len(found) != 1:
        raise TapError(f"{place!r} is {len(found)} feature maps; a tap needs a module with exactly one there")
    return found.pop()


def _by(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))
