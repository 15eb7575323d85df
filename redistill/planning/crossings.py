"""Crossings: modules whose operations all move from one stage to another (``layer2.0``: its strided convolution and its
strided shortcut), and the maps on either side of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from redistill.planning.stages import Grid, StageGraph, Transition, common_path
from redistill.tracing import operators
from redistill.tracing.meta import Meta

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


def find_crossings(graph_module: GraphModule, stages: StageGraph) -> tuple[Crossing, ...]:
    """The crossings of a network in data-flow order; one for each pair of grids, the first where there are several."""
    places = Places(graph_module, stages)
    groups: dict[tuple[int, int], list[Transition]] = {}
    for transition in stages.transitions:
        is_ours = {Meta.REDUCES_INPUT, Meta.RETURNS} & places.nodes[transition.node].meta.keys()
        if transition.source != transition.target and transition.operator != "resize" and not is_ours:
            groups.setdefault((transition.source, transition.target), []).append(transition)
    found: dict[tuple[Grid, Grid, bool], Crossing] = {}
    for (source, target), group in groups.items():
        crossing = places.crossing(group) or places.crossing(group[:1])
        if crossing is not None:
            key = (stages.stages[source].grid, stages.stages[target].grid, crossing.goes_up)
            found.setdefault(key, crossing)
    return tuple(found.values())


class Places:
    """The modules of a graph and the maps that enter and leave each."""

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

    def maps(self, path: str, side: str) -> set[Node]:
        """The maps that the module at ``path`` reads from outside (``in``) or gives to others (``out``)."""
        inside = {n for n, paths in self.paths.items() if path in paths}
        if side == "in":
            return {s for n in inside for s in n.all_input_nodes if s not in inside and self._is_map(s)}
        return {n for n in inside if self._is_map(n) and any(u not in inside for u in n.users)}

    def _width(self, crossing: Crossing) -> int:
        """Values on both sides; the image at a stem does not count, for it is not tapped."""
        grids = {side: grid_of(crossing, side, self.stages) for side in SIDES if crossing.has(side)}
        return sum(crossing.channels(side) * math.prod(grid) for side, grid in grids.items())

    def _candidate(self, path: str, transition: Transition) -> Crossing | None:
        entering, leaving = self.maps(path, "in"), self.maps(path, "out")
        if len(entering) != 1 or len(leaving) != 1:
            return None
        (source,), (target,) = entering, leaving
        if not (self.is_tappable(source) and self.is_tappable(target)):
            return None
        stage_of = self.stages.stage_of
        if (stage_of.get(source.name), stage_of.get(target.name)) != (transition.source, transition.target):
            return None
        return Crossing(
            path, transition.kind, transition.source, transition.target, transition,
            source.name, target.name, self._shape(source)[1], self._shape(target)[1],
        )  # fmt: skip

    def is_tappable(self, node: Node) -> bool:
        """Whether a RED block can be laid there: a batch of maps, channels before the sides of their grid."""
        axes = self.stages.growth.axes(node.name)
        return (
            len(axes) in (1, 2, 3) and axes == tuple(range(-len(axes), 0)) and len(self._shape(node)) == len(axes) + 2
        )

    def _is_map(self, node: Node) -> bool:
        return bool(self.stages.growth.axes(node.name)) and node.name in self.stages.stage_of

    def _shape(self, node: Node) -> Any:
        return self.stages.record.values.get(node.name)


def _module_paths(node: Node) -> set[str]:
    """Every module whose forward the node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    return {str(path) for path, _ in stack.values()} | ({operators.module_path(node)} - {""})


def grid_of(crossing: Crossing, side: str, stages: StageGraph) -> Grid:
    """The teacher's grid on that side."""
    return stages.growth.sides(crossing.node(side))
