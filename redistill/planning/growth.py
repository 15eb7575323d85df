"""Growth: which axes of which tensors belong to a grid, seen by running the graph once more at twice the size.

Whatever lies on the way (channels last, frames in the batch, a sequence) is followed rather than guessed: an axis of
an input is spatial if it makes the axes grow that the first convolution or pool slides over; an axis of any other
tensor if it grows with those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from redistill.internal.silence import quiet_logger
from redistill.memory.recording import GraphRecord, Shape, ShapeInterpreter
from redistill.tracing import operators
from redistill.tracing.meta import Meta
from redistill.tracing.operators import name_of
from redistill.tracing.windows import sliding_kind

GROWTH = 2  # the second run has sides this many times as long
FLATTENED = 3.5  # an axis that grows more than this holds a whole grid of two or more axes
LONGEST_WAY = 200  # operations between an input and the first convolution that are followed
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Growth:
    """The same graph at two sizes; ``rank`` is the number of axes that an input grew along."""

    record: GraphRecord
    grown: GraphRecord
    rank: int

    def scales(self, name: str) -> bool:
        """Whether the value of a node (a tensor's shape, or a size) depends on the size of the input."""
        return bool(self.record.values.get(name) != self.grown.values.get(name))

    def axes(self, name: str) -> Axes:
        """The axes of a tensor that are sides of a grid, counted from its end: (-2, -1) for (B, C, H, W)."""
        small, large = self.record.values.get(name), self.grown.values.get(name)
        if not (isinstance(small, Shape) and isinstance(large, Shape)) or len(small) != len(large):
            return ()
        return tuple(
            axis - len(small)
            for axis, (s, g) in enumerate(zip(small, large, strict=True))
            if s != g and (self.rank == 1 or g < FLATTENED * s)
        )

    def sides(self, name: str) -> tuple[int, ...]:
        """The sides of the grid that a tensor lies on."""
        shape = self.record.values[name]
        return tuple(shape[axis] for axis in self.axes(name))

    def sides_in(self, name: str) -> int:
        """How many sides are multiplied in a size: 1 in a height, 2 in the number of a map's cells."""
        return round(math.log(self.grown.values[name] / self.record.values[name], GROWTH))

    def strides(self, source: str, target: str) -> tuple[Fraction, ...]:
        """For each axis, input side over output side, from the growth of both: border effects of padding cancel."""
        pairs = zip(self._increments(source), self._increments(target), strict=True)
        return tuple(
            Fraction(max(1, round(wide / narrow))) if wide >= narrow else Fraction(1, round(narrow / wide))
            for wide, narrow in pairs
        )

    def _increments(self, name: str) -> list[int]:
        small, large = self.record.values[name], self.grown.values[name]
        return [max(1, int(large[axis] - small[axis])) for axis in self.axes(name)]


def growth_exponent(small: int, large: int, rank: int = 2) -> Fraction:
    """How a quantity grows with the cells of a grid of ``rank`` axes: 0 not at all, 1 with them, 2 with their square.

    What belongs to one side of a map only, such as a sequence of its columns, has 1/2.
    """
    return Fraction(round(math.log(large / small, GROWTH)), rank) if small and large else Fraction(0)


def grown_shapes(graph_module: GraphModule, inputs: Sequence[Tensor]) -> tuple[list[tuple[int, ...]], int]:
    """The shapes of ``inputs`` with each spatial side twice as long, and along how many axes the largest grid grew."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    axes = [_input_axes(graph_module, p, x) for p, x in zip(placeholders, inputs, strict=False)]
    shapes = [
        tuple(GROWTH * side if axis in spatial else side for axis, side in enumerate(x.shape))
        for x, spatial in zip(inputs, axes, strict=False)
    ]
    return shapes, max((len(a) for a in axes), default=0)


def _input_axes(graph_module: GraphModule, placeholder: Node, value: Tensor) -> Axes:
    """The spatial axes of an input, counted from its start."""
    if value.dim() < 2:
        return ()
    first, dims = _first_sliding(graph_module, placeholder)
    usual = tuple(range(2, value.dim()))
    if first is None:
        return usual if value.dim() == 4 else ()
    if first.all_input_nodes[0] is placeholder:
        return tuple(range(value.dim() - dims, value.dim()))
    found = _probe_axes(graph_module, placeholder, first, dims) or _probe_sides(graph_module, placeholder, first, dims)
    return found or (usual if value.dim() == dims + 2 else ())


def _first_sliding(graph_module: GraphModule, placeholder: Node) -> tuple[Node | None, int]:
    """The first operation that slides over a grid and depends on the input, and over how many axes it slides."""
    modules = operators.modules_of(graph_module)
    reached = {placeholder}
    for node in graph_module.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            found = sliding_kind(node, modules.get(str(node.target)) if node.op == "call_module" else None)
            if found is not None and node.all_input_nodes[0] in reached:
                return node, found[1]
            if name_of(node) == "interpolate":
                return node, len(node.meta.get(Meta.SHAPE, ())) - 2
    return None, 0


def _probe_axes(graph_module: GraphModule, placeholder: Node, first: Node, dims: int) -> Axes:
    """Which single axes of the input, made longer, make longer what the operation slides over and nothing else."""
    shape = placeholder.meta[Meta.SHAPE]
    longer = {a: {placeholder: _longer(shape, (a,))} for a in range(len(shape))}
    return tuple(axis for axis, shapes in longer.items() if _grows_alone(graph_module, first, dims, shapes))


def _probe_sides(graph_module: GraphModule, placeholder: Node, first: Node, dims: int) -> Axes:
    """As ``_probe_axes``, where inputs must grow together (an image and its mask, a list of images): all sides of one
    length do."""
    inputs = graph_module.graph.find_nodes(op="placeholder")
    alike = {p: p.meta.get(Meta.SHAPE, ()) for p in inputs}
    found: list[int] = []
    for side in dict.fromkeys(alike[placeholder]):
        axes = {p: tuple(a for a, length in enumerate(shape) if length == side) for p, shape in alike.items()}
        shapes = {p: _longer(alike[p], axes[p]) for p in inputs}
        if _grows_alone(graph_module, first, dims, shapes):
            found += axes[placeholder]
    return tuple(sorted(found))


def _longer(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(GROWTH * side if axis in axes else side for axis, side in enumerate(shape))


def _grows_alone(graph_module: GraphModule, first: Node, dims: int, shapes: dict[Node, tuple[int, ...]]) -> bool:
    """Whether inputs of these shapes make longer what the operation slides over, and nothing else."""
    source = first.all_input_nodes[0]
    way = _ancestors(source)
    if len(way) > LONGEST_WAY:
        return False
    before, after = _shape_at(graph_module, source, way, {}), _shape_at(graph_module, source, way, shapes)
    return bool(before and after) and before[:-dims] == after[:-dims] and before != after


def _ancestors(node: Node) -> set[Node]:
    found, queue = {node}, [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def _shape_at(
    graph_module: GraphModule, node: Node, way: Iterable[Node], shapes: dict[Node, tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape of ``node`` with some inputs of another shape; () where the graph does not run so."""
    # The interpreter is driven by hand, node by node, instead of by run(): only the way to the node is walked, since
    # past it the graph may well not run at this size (a head that flattens, a window of fixed length). What is known
    # of the graph at its own size stays as it is, so that a failure means just that the size does not pass, and no
    # more.
    wanted = set(way)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), quiet_logger("torch._subclasses.fake_tensor"), mode:  # it logs the very failures tried for
        interpreter = ShapeInterpreter(graph_module, garbage_collect_values=False)
        try:
            for step in (n for n in graph_module.graph.nodes if n in wanted):
                if step.op == "placeholder":
                    shape = shapes.get(step, step.meta.get(Meta.SHAPE, ()))
                    interpreter.env[step] = torch.empty(shape, dtype=step.meta.get(Meta.DTYPE))
                else:
                    interpreter.env[step] = interpreter.run_node(step)
        except Exception:
            return ()
        value: Any = interpreter.env[node]
        return tuple(value.shape) if isinstance(value, Tensor) else ()
