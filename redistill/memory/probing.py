"""Probing: a graph recorded at another size than its own, also past what fixes its size.

A position embedding, a table of biases, a view by constants take one size only. There the probe goes on with the shape
that would have come had what is fixed grown as well, so that the grids behind it are seen to be grids. A resize to a
constant size is one to as large a part of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from redistill.memory.recording import GraphRecord, Recorder, RecordingInterpreter, Shape, record
from redistill.tracing.operators import name_of
from redistill.tracing.windows import constant_size

_VIEWS = ("view", "reshape", "unflatten")


def probe_graph(
    graph_module: GraphModule, inputs: Sequence[Tensor], known: GraphRecord, dtype: str | None = None
) -> tuple[GraphRecord, dict[str, str]]:
    """Record the graph at another size; where a node fails there, its value is what it would be if nothing were fixed.

    Where that cannot be told, it is the value in ``known``.

    Returns:
        The record, and the reason of failure by node name.
    """

    def interpreter(modules: nn.Module, graph: Graph, recorder: Recorder) -> _ProbingInterpreter:
        return _ProbingInterpreter(modules, graph, recorder, known)

    found, run = record(graph_module, inputs, dtype, interpreter)
    assert isinstance(run, _ProbingInterpreter)
    return found, run.blocked


class _ProbingInterpreter(RecordingInterpreter):
    """Goes on where the graph fails at another size."""

    def __init__(self, modules: nn.Module, graph: Graph, recorder: Recorder, known: GraphRecord) -> None:
        super().__init__(modules, graph, recorder)
        self.known = known
        self.blocked: dict[str, str] = {}
        self.growth = 1

    def call(self, n: Node) -> Any:
        """Run the node, or tell its value."""
        size = constant_size(n, self.modules.get(str(n.target)) if n.op == "call_module" else None)
        if size is not None:
            return self._resized(n, size)
        if n.op == "placeholder":
            value = super().call(n)
            self.growth = max([self.growth, *(longer // side for side, longer in self._grown_sides(n, value))])
            return value
        try:
            return super().call(n)
        except Exception as error:
            self.blocked[n.name] = str(error).strip().partition("\n")[0]
        known = self.known.values[n.name]
        if isinstance(known, Shape) and n.op != "call_module":
            with suppress(Exception):
                return self._laid_out(n, known) if name_of(n) in _VIEWS else self._with_grown_constants(n)
        return _empty_like(known)

    def _with_grown_constants(self, node: Node) -> Any:
        """Run the node as if each side of a constant that is as long as one that grew had grown as well."""
        grown = dict(pair for source in node.all_input_nodes for pair in self._grown_sides(source))

        def value(source: Node) -> Any:
            found = self.env[source]
            if not isinstance(found, Tensor) or any(True for _ in self._grown_sides(source)):
                return found
            return torch.empty([grown.get(side, side) for side in found.shape], dtype=found.dtype)

        args, kwargs = map_arg((node.args, node.kwargs), value)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _resized(self, node: Node, size: Sequence[int]) -> Tensor:
        """A map at a constant size, which grows along the axes that grew, or along all where none did."""
        source: Tensor = self.env[node.all_input_nodes[0]]
        known = self.known.values[node.all_input_nodes[0].name]
        pairs = list(zip(known[-len(size) :], source.shape[-len(size) :], strict=True))
        fixed = all(small == large for small, large in pairs)
        grown = [
            s * self.growth if fixed or small != large else s for s, (small, large) in zip(size, pairs, strict=True)
        ]
        return source.new_empty([*source.shape[: -len(size)], *grown])

    def _grown_sides(self, source: Node, value: Any = None) -> Iterator[tuple[int, int]]:
        """The sides of a tensor that are longer than they are known to be, and how long they are."""
        known, value = self.known.values[source.name], self.env[source] if value is None else value
        if isinstance(known, Shape) and isinstance(value, Tensor):
            yield from ((k, v) for k, v in zip(known, value.shape, strict=True) if v != k)

    def _laid_out(self, node: Node, known: Shape) -> Tensor:
        """The map in the shape that constants give it, each of its sides grown as the source's."""
        source: Tensor = self.env[node.all_input_nodes[0]]
        return source.reshape(grown_layout(self.known.values[node.all_input_nodes[0].name], source.shape, known))


def grown_layout(small: Sequence[int], large: Sequence[int], laid_out: Sequence[int]) -> list[int]:
    """The shape that a tensor of shape ``large`` gets where one of shape ``small`` becomes ``laid_out``.

    >>> grown_layout((1, 196, 48), (1, 784, 48), (1, 14, 14, 48))
    [1, 28, 28, 48]
    >>> grown_layout((1, 48, 14, 14), (1, 48, 28, 28), (1, 48, 196))
    [1, 48, 784]

    Raises:
        ValueError: it cannot be told which side of ``laid_out`` grows by how much.
    """
    found: list[int] = []
    rest, sides = list(zip(small, large, strict=True)), list(laid_out)
    while sides:  # the shortest parts of both that hold equally many cells
        before, after, part = 1, 1, [sides.pop(0)]
        while before != math.prod(part) or (rest and rest[0][0] == 1):
            if before < math.prod(part) or before == math.prod(part):
                side, longer = rest.pop(0)
                before, after = before * side, after * longer
            else:
                part.append(sides.pop(0))
        found += _grow(part, before, after)
    return found


def _grow(sides: Sequence[int], before: int, after: int) -> list[int]:
    """Sides whose product grows from ``before`` to ``after``: all by the same factor."""
    inner = [side for side in sides if side > 1] or list(sides)
    factor = round((after / before) ** (1 / len(inner)))
    if before * factor ** len(inner) != after:
        raise ValueError(f"{before} cells become {after}: not by one factor for each of {len(inner)} sides")
    return [side * factor if side > 1 or len(inner) == len(sides) else side for side in sides]


def _empty_like(shape: Any) -> Any:
    """A tensor for a shape, everything else as it is."""
    if isinstance(shape, Shape):
        return torch.empty(shape)
    if isinstance(shape, tuple):
        return tuple(_empty_like(s) for s in shape)
    if isinstance(shape, dict):
        return {key: _empty_like(s) for key, s in shape.items()}
    return shape
