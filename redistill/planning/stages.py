"""Stages: the parts of a network that share one grid, the transitions between them, and the strides these can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import networkx as nx

from redistill.memory.recording import GraphRecord
from redistill.planning.growth import Axes, Growth

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Nodes that share one pooling factor, in data-flow order.

    ``fixed`` says why the factor must be 1, if it must; a ``boundary`` stage is that of the input or a spatial output;
    ``output`` is the last feature map of the stage, ``pre_activation`` the same before its activation.
    """

    index: int
    name: str
    grid: Grid
    nodes: tuple[str, ...]
    fixed: str | None = None
    boundary: bool = False
    output: str = ""
    pre_activation: str = ""

    def student_grid(self, factor: int) -> Grid:
        """The grid at a pooling factor: sides divided, rounded up as padded convolutions do."""
        return coarse(self.grid, factor)


def coarse(grid: Sequence[int], factor: int) -> Grid:
    """A grid whose every side is divided by ``factor``, rounded up."""
    return tuple(-(-side // factor) for side in grid)


_CAN_TAKE: dict[
    str, Callable[[Fraction], bool]
] = {  # what an operation may be asked for on each axis: input side over output side
    "convolution": lambda stride: stride.denominator == 1,
    "pool": lambda stride: stride.denominator == 1,
    "slice": lambda stride: stride.denominator == 1,
    "transposed": lambda stride: stride.numerator == 1,
    "interpolate": lambda stride: stride.numerator == 1 or stride.denominator == 1,
    "shuffle": lambda stride: stride.numerator == 1 or stride.denominator == 1,
    "resize": lambda stride: True,
}


@dataclass(frozen=True)
class Transition:
    """An operation that moves from one stage to another.

    ``strides`` are input side over output side (1/2 upsamples) for each of ``axes``, the axes of its output that are
    sides of the grid, counted from the end; ``size_stage`` is the stage that a resize is told its size by;
    ``yields_features`` says that a convolution makes a map for others to read.
    """

    node: str
    module: str
    kind: str  # stem, down, up, same or tail
    source: int
    target: int
    strides: tuple[Fraction, ...]
    operator: str  # convolution, pool, transposed, slice, shuffle, interpolate, resize
    axes: Axes = (-2, -1)
    size_stage: int | None = None
    yields_features: bool = False

    @property
    def stride(self) -> Fraction:
        """The stride, where it is the same along all axes; the largest otherwise."""
        return max(self.strides)

    def student_strides(self, source_factor: int, target_factor: int) -> tuple[Fraction, ...]:
        """The strides that take the source's coarser grid to the target's."""
        return tuple(stride * target_factor / source_factor for stride in self.strides)

    def is_legal(self, source_factor: int, target_factor: int) -> bool:
        """Whether the pass can give the operation those strides, adding an upsampling after a tail if need be."""
        can_take = _CAN_TAKE["interpolate" if self.kind == "tail" and self.operator != "resize" else self.operator]
        strides = self.student_strides(source_factor, target_factor)
        return all(can_take(s) for s in strides) and (self.operator != "shuffle" or self._goes_one_way(strides))

    def _goes_one_way(self, strides: Sequence[Fraction]) -> bool:
        """Whether a shuffle still makes all sides shorter, or none, by a multiple or a part of its own factor."""
        pairs = list(zip(self.strides, strides, strict=True))
        ratios = [own / stride for own, stride in pairs]
        turns = any(stride != 1 and (own > 1) != (stride > 1) for own, stride in pairs)
        return not turns and len(set(strides)) == 1 and all(r.numerator == 1 or r.denominator == 1 for r in ratios)


@dataclass(frozen=True)
class StageGraph:
    """The stages of a network, the transitions between them, and what the analysis needs to scale its record."""

    stages: tuple[Stage, ...]
    transitions: tuple[Transition, ...]
    record: GraphRecord
    growth: Growth = field(repr=False)
    stage_of: dict[str, int] = field(repr=False)
    shared: tuple[str, ...] = ()  # modules called at several places, which share their factors
    told: tuple[tuple[str, str], ...] = ()  # nodes that lay out a map, and a size of another stage by which they do
    resized: tuple[str, ...] = ()  # nodes that bring a map to a constant size
    joins: tuple[tuple[str, tuple[str, ...]], ...] = ()  # images, and where each joins maps of the network
    returned: tuple[str, ...] = ()  # maps that are outputs, of stages that only this fixes and the network reads on
    narrowing: tuple[tuple[str, str], ...] = ()  # unpadded windows and crops within a stage, and what each reads

    @property
    def grown(self) -> GraphRecord:
        """The record at twice the size."""
        return self.growth.grown

    @property
    def free(self) -> tuple[Stage, ...]:
        """The stages a plan speaks of: all but those of the input and of spatial outputs."""
        return tuple(s for s in self.stages if not s.boundary)

    def as_networkx(self) -> nx.MultiDiGraph[int]:
        """Stages as nodes (attribute ``stage``), transitions as edges (attribute ``transition``)."""
        graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        graph.add_nodes_from((s.index, {"stage": s}) for s in self.stages)
        graph.add_edges_from((t.source, t.target, {"transition": t}) for t in self.transitions)
        return graph


def common_path(paths: Sequence[str]) -> str:
    """The longest dotted path that all ``paths`` begin with."""
    split = [path.split(".") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
