"""A recorded graph as patches see it: operations in order, what each may be cut into, what is alive between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from redistill.internal.caching import cached_method
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import lifetimes, timeline
from redistill.memory.recording import GraphRecord, Operation, Shape
from redistill.planning.patches.axes import AxisRule
from redistill.planning.patches.gates import may_be_swept, takes_mean
from redistill.planning.patches.rules import MAP_AXES, POINTWISE, TAKE_WEIGHTS, Axes, Rule, Subject, find_rule
from redistill.tracing import operators
from redistill.tracing.meta import Meta


@dataclass(frozen=True)
class Operand:
    """An input of an operation: which operation makes it, and whether it has the output's rows and columns, or one."""

    position: int
    spread: tuple[bool, bool] = (True, True)


@dataclass(frozen=True)
class Step:
    """One operation: ``rule`` says how it is run on a part; ``ready`` is the last operation that a free one needs.

    Attributes:
        cell_bytes: bytes of one position of its output, all channels; 0 where it makes no memory of its own.
        writes: the operation whose result it overwrites, or -1.
        last_use: the last operation that reads its result.
        takes_mean: whether it yields the mean of each channel of a whole map.
    """

    position: int
    node: Node
    shape: tuple[Any, ...]
    axes: Axes | None
    rule: Rule | None
    operands: tuple[Operand, ...]
    cell_bytes: int
    macs: int
    writes: int
    ready: int | None
    last_use: int
    recorded: Operation = field(repr=False)
    takes_mean: bool = False

    @property
    def is_tuple(self) -> bool:
        """Whether it yields several maps."""
        return isinstance(self.shape, tuple) and bool(self.shape) and isinstance(self.shape[0], tuple)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of its output."""
        assert self.axes is not None
        return int(self.shape[self.axes[0]]), int(self.shape[self.axes[1]])

    def axis_rule(self, axis: int) -> AxisRule:
        """The rule for rows (0) or columns (1)."""
        assert self.rule is not None
        return self.rule.along[axis]


class PatchNetwork:
    """The operations of a graph in execution order, under a convention; cut ``c`` lies before operation ``c``."""

    def __init__(self, graph_module: GraphModule, record: GraphRecord, convention: Convention) -> None:
        self.record = record
        self.convention = convention.of_graph
        self.nodes = {n.name: n for n in graph_module.graph.nodes}
        self.modules = operators.modules_of(graph_module)
        self.positions = {o.node: t for t, o in enumerate(record.operations)}
        self.steps = self._read()
        self.macs = record.macs

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def live(self) -> list[int]:
        """Bytes alive while each operation runs as it is."""
        steps = timeline(self.record, lifetimes(self.record, self.convention), self.convention)
        return [step.live_bytes for step in steps]

    @cached_property
    def work(self) -> np.ndarray:
        """Multiply-accumulates of each operation that can be run in parts; 0 for all others."""
        return np.array([0.0 if s.ready is not None else float(s.macs) for s in self.steps])

    @cached_property
    def is_square(self) -> bool:
        """Whether rows and columns are alike throughout."""
        ruled = [s for s in self.steps if s.rule is not None]
        return all(
            s.axis_rule(0) == s.axis_rule(1) and s.sides[0] == s.sides[1] and all(a == b for a, b in spreads(s))
            for s in ruled
            if not s.is_tuple
        )

    @cached_property
    def crossing(self) -> list[int]:
        """Bytes alive between operations: at each cut, what was made before it and is read after it."""
        change = [0] * (len(self) + 2)
        for born, dies, size in self._spans():
            change[born + 1] += size
            change[dies + 1] -= size
        return list(accumulate(change[:-1]))

    def held(self, start: int, end: int) -> int:
        """Bytes alive throughout a region: what is alive at its start, and its results."""
        return self.crossing[start] + self.made(start, end)

    def joined(self, start: int, end: int) -> int:
        """Bytes alive when the parts of the results are put together after a region: the results are there twice."""
        return self.crossing[end] + self.made(start, end)

    @cached_method
    def made(self, start: int, end: int) -> int:
        """Bytes of the results of a region that are read after it."""
        return sum(self.map_bytes(t) for t in self.results(start, end))

    def map_bytes(self, position: int) -> int:
        """Bytes of a whole result, in memory of its own."""
        step = self.steps[position]
        return self.value_bytes(position) * math.prod(step.sides)

    @cached_method
    def value_bytes(self, position: int) -> int:
        """Bytes of one position of a result, whoever's memory it lies in."""
        step = self.steps[position]
        if step.cell_bytes or not step.operands or not math.prod(step.sides):
            return step.cell_bytes
        channels: int = math.prod(step.shape) // math.prod(step.sides)
        first = self.steps[step.operands[0].position]
        if first.axes is None:  # a view of what is no map, such as tokens
            return channels * int(step.node.meta.get(Meta.DTYPE, torch.float32).itemsize)
        whole: int = math.prod(first.shape)
        return int(self.value_bytes(first.position) * math.prod(first.sides) * channels // max(whole, 1))

    def results(self, start: int, end: int) -> list[int]:
        """The operations of a region whose result is read after it."""
        return [t for t in range(start, end) if self.steps[t].last_use >= end and self.steps[t].ready is None]

    @cached_property
    def reach_back(self) -> list[int]:
        """For each cut the earliest start of a region that ends there and holds only what can be run in parts.

        Of means, a region holds one at most.
        """
        found = [0]
        start, mean = 0, -1
        for step in self.steps:
            if step.takes_mean:
                start, mean = max(start, mean + 1), step.position
            elif step.rule is None and step.ready is None:
                start = step.position + 1
            found.append(start)
        return found

    def is_folded(self, step: Step, start: int) -> bool:
        """Whether pieces from ``start`` on run an operation with the convolution before it: a foldable batch norm."""
        return step.recorded.folds and step.operands[0].position >= start

    def norm_after(self, step: Step, end: int) -> Step | None:
        """The batch norm that pieces up to ``end`` run with a convolution, if there is one."""
        follows = self.steps[step.last_use] if 0 <= step.last_use < end else None
        return follows if follows is not None and self.is_folded(follows, step.position) else None

    @property
    def possible_regions(self) -> int:
        """How many pairs of cuts have nothing between them that could not be run in parts."""
        return sum(end - start for end, start in enumerate(self.reach_back))

    @cached_method
    def is_region(self, start: int, end: int) -> bool:
        """Whether what lies between two cuts can be run in parts."""
        if start < self.reach_back[end] or start >= end:
            return False
        for step in self.steps[start:end]:
            if step.ready is not None:
                if step.ready >= start:
                    return False
            elif 0 <= step.writes < start:
                return False
        results = [self.steps[t] for t in self.results(start, end)]
        return bool(results) and all(s.axes for s in results) and may_be_swept(self, start, end)

    @cached_method
    def aside(self, mean: int) -> frozenset[int]:
        """A mean and what is computed of it alone, one number a channel: the gate of a squeeze and excitation."""
        found = {mean}
        for step in self.steps[mean + 1 :]:
            if step.ready is None and step.axes and step.operands and not step.is_tuple and step.sides == (1, 1):
                maps = [o.position for o in step.operands if self.steps[o.position].ready is None]
                if maps and found.issuperset(maps):
                    found.add(step.position)
        return frozenset(found)

    def _spans(self) -> Iterable[tuple[int, int, int]]:
        """(made, last read, bytes) of every value; where a value's memory is taken over, the next is one of its own."""
        plain = replace(self.convention, overwrites=False)
        return [(b.born, b.dies, b.bytes) for b in lifetimes(self.record, plain)]

    def _read(self) -> list[Step]:
        current: dict[Node, Node] = {}
        steps: list[Step] = []
        for position, operation in enumerate(self.record.operations):
            steps.append(self._step(position, operation, steps, current))
        for step in steps:
            for operand in step.operands:
                source = steps[operand.position]
                steps[operand.position] = _used(source, step.position)
        return steps

    def _step(self, position: int, operation: Operation, steps: Sequence[Step], current: dict[Node, Node]) -> Step:
        node = self.nodes[operation.node]
        sources = [self._source(steps[self.positions[current.get(n, n).name]], steps) for n in node.all_input_nodes]
        writes = self._written(operation, node, sources)
        if operation.mutates and node.all_input_nodes:
            current[node.all_input_nodes[0]] = node
        shape = self.record.values[node.name]
        ready = _ready(node, position, shape, sources)
        rule = None if ready is not None or node.op in ("placeholder", "output") else self._rule(node, shape, sources)
        axes = rule.axes if rule else MAP_AXES if isinstance(shape, Shape) and len(shape) == 4 else None
        if rule is not None and (len(operation.creates) > 1 or (operation.mutates and writes < 0)):
            rule = None
        operands = self._operands(node, shape, axes, rule, sources)
        if operands is None:
            rule, operands = None, tuple(Operand(s.position) for s in sources)
        if rule is None and isinstance(shape, tuple) and not isinstance(shape, Shape):
            axes = None
        cell = self._cell_bytes(operation, shape, axes)
        mean = rule is None and ready is None and len(operation.creates) == 1 and takes_mean(node, self.modules)
        return Step(
            position, node, shape, axes, rule, operands, cell, operation.macs, writes, ready, -1, operation, mean
        )

    def _source(self, step: Step, steps: Sequence[Step]) -> Step:
        """Where one of several maps is taken, the map that they are parts of: a tuple is never made of a part."""
        return steps[step.operands[0].position] if step.is_tuple and step.rule is not None else step

    def _rule(self, node: Node, shape: object, sources: Sequence[Step]) -> Rule | None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        operation = self.record.operations[self.positions[node.name]]
        hands_on = not operation.creates and not operation.mutates and not _has_state(module)
        inputs = tuple((s.node, s.shape, s.axes if s.ready is None else None) for s in sources)
        return find_rule(Subject(node, module, shape, inputs, hands_on and bool(inputs) and shape == inputs[0][1]))

    def _operands(
        self, node: Node, shape: object, axes: Axes | None, rule: Rule | None, sources: Sequence[Step]
    ) -> tuple[Operand, ...] | None:
        """The inputs; None if one of them has neither the output's grid nor can be broadcast over it."""
        if rule is None or axes is None:
            return tuple(Operand(s.position) for s in sources)
        out = shape if isinstance(shape, Shape) else shape[0] if isinstance(shape, tuple) and shape else None
        if not isinstance(out, Shape) or len(out) != 4:
            return None
        grid = (out[axes[0]], out[axes[1]])
        moves = rule.along != (POINTWISE, POINTWISE)
        found = []
        for index, source in enumerate(sources):
            if moves and index == 0:
                found.append(Operand(source.position))
            elif source.ready is not None:
                if operators.name_of(node) not in TAKE_WEIGHTS and not _is_broadcast(source.shape, out, axes):
                    return None
                found.append(Operand(source.position, (False, False)))
            elif moves or source.axes is None or not all(a in (b, 1) for a, b in zip(source.sides, grid, strict=True)):
                return None
            else:
                found.append(Operand(source.position, (source.sides[0] == grid[0], source.sides[1] == grid[1])))
        return tuple(found)

    def _written(self, operation: Operation, node: Node, sources: Sequence[Step]) -> int:
        if not operation.mutates or not sources:
            return -1
        aliases = [s for s in sources if set(operation.mutates) & set(self._storages(s))]
        return aliases[0].position if len(aliases) == 1 and aliases[0] is sources[0] else -1

    def _storages(self, step: Step) -> tuple[int, ...]:
        operation = step.recorded
        return operation.creates or operation.reads

    def _cell_bytes(self, operation: Operation, shape: object, axes: Axes | None) -> int:
        if axes is None or not operation.creates:
            return 0
        first = shape if isinstance(shape, Shape) else shape[0] if isinstance(shape, tuple) and shape else ()
        assert isinstance(first, tuple)
        return self.record.storages[operation.creates[0]].bytes // max(first[axes[0]] * first[axes[1]], 1)


def spreads(step: Step) -> list[tuple[bool, bool]]:
    """Along which axes each input is spread."""
    return [operand.spread for operand in step.operands]


def _used(step: Step, position: int) -> Step:
    return replace(step, last_use=max(step.last_use, position))


def _ready(node: Node, position: int, shape: object, sources: Sequence[Step]) -> int | None:
    """For what comes of sizes, weights and inputs that are no maps, which are not divided: the last that it needs."""
    if node.op == "placeholder":
        return None if isinstance(shape, Shape) and len(shape) == 4 else position
    if node.op == "output":
        return None
    if _holds_tensor(shape) and any(s.ready is None for s in sources):
        return None
    return max((s.position if s.ready is None else s.ready for s in sources), default=-1)


def _holds_tensor(shape: object) -> bool:
    if isinstance(shape, Shape):
        return True
    return isinstance(shape, (tuple, dict)) and any(
        map(_holds_tensor, shape.values() if isinstance(shape, dict) else shape)
    )


def _has_state(module: nn.Module | None) -> bool:
    """Whether a module could be more than the identity (all that is not a module is)."""
    return module is None or next(module.children(), None) is not None or bool(module.state_dict())


def _is_broadcast(shape: object, out: Shape, axes: Axes) -> bool:
    """Whether a weight or number is the same at every row and column."""
    if not isinstance(shape, Shape):
        return True
    offset = len(out) - len(shape)
    return all(a < offset or shape[a - offset] == 1 for a in axes)
