"""Pieces: the nodes that run a region piece by piece, laid in the place of those that run it whole."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence

import torch
from torch.fx import GraphModule, Node

from redistill.passes.piece_calls import PieceCalls, TileMark
from redistill.planning.patches.gates import Stretch, find_stretches
from redistill.planning.patches.network import PatchNetwork, Step
from redistill.planning.patches.programs import (
    Add,
    Box,
    Form,
    Instruction,
    Join,
    Keep,
    Piece,
    Read,
    Run,
    Write,
    find_fronts,
    reach_back,
    strip_program,
    sum_so_far,
    sweep_program,
    tile_program,
)


def region_program(
    network: PatchNetwork, stretch: Stretch, form: Form, mean: int = -1
) -> Iterator[tuple[int, Iterator[Instruction]]]:
    """The instructions of a stretch by piece; with ``mean``, the pieces are only added up for it."""
    start, end = stretch.start, stretch.end
    columns = reach_back(network, stretch, form.columns, 1)
    if form.keeps:
        fronts = find_fronts(network, start, end, form.rows)
        kept: dict[int, Piece] = {}
        for strip in range(form.rows):
            yield strip, strip_program(network, start, end, fronts, columns[0], strip, kept)
        return
    rows = reach_back(network, stretch, form.rows, 0)
    for tile in range(form.tiles):
        high, wide = rows[tile // form.columns], columns[tile % form.columns]
        if mean >= 0:
            yield tile, sweep_program(network, stretch, high, wide, tile, mean)
        else:
            yield tile, tile_program(network, stretch, high, wide, tile)


class RegionLayer(PieceCalls):
    """Lays the instructions of one region into the graph, before its first node."""

    def __init__(
        self, graph_module: GraphModule, network: PatchNetwork, start: int, end: int, number: int, form: Form, join: str
    ) -> None:
        super().__init__(graph_module, network, start, end)
        self.number, self.form, self.join = number, form, join
        self.steps = network.steps[start:end]
        *self.sweeps, self.main = find_stretches(network, start, end)
        self.aside = sorted(network.aside(self.main.mean))[1:] if self.sweeps else []
        stays = {network.steps[position].node for position in self.aside}
        self.replaced = [
            s.node for s in self.steps if s.ready is None and not self._divides_result(s) and s.node not in stays
        ]
        self.anchor = self.replaced[0]
        self.value: dict[Piece, Node] = {}
        self.whole: dict[int, Node] = {}
        self.written: dict[int, list[tuple[Box, Node]]] = {}
        self.mean: Node | None = None

    def lay(self) -> None:
        """Put the pieces in the place of the region's nodes."""
        for step in self.steps:
            if step.ready is not None:
                self.anchor.prepend(step.node)
        results = self.network.results(self.start, self.end)
        for sweep in self.sweeps:
            self._sweep(sweep)
        with self.graph.inserting_before(self.anchor):
            if self.join == "write":
                self.whole = {t: self._allocate(self.network.steps[t]) for t in results}
            for tile, program in region_program(self.network, self.main, self.form):
                for instruction in program:
                    self._lay(instruction, tile + len(self.sweeps) * self.form.tiles)
            if self.join != "write":
                self.whole = {t: self._concatenate(self.network.steps[t]) for t in results}
        self._replace(results)

    def _sweep(self, sweep: Stretch) -> None:
        """Add up the mean, and put what is computed of it alone after that."""
        mean = self.network.steps[self.main.mean]
        with self.graph.inserting_before(self.anchor):
            for tile, program in region_program(self.network, sweep, self.form, mean.position):
                for instruction in program:
                    self._lay(instruction, tile)
            total = self.value[sum_so_far(mean.position, self.form.tiles - 1)]
            cells = math.prod(self.network.steps[sweep.source].sides)
            self.mean = self._call(operator.truediv, (total, cells), "mean")
        mean.node.replace_all_uses_with(self.mean)
        for position in self.aside:
            self.anchor.prepend(self.network.steps[position].node)

    def _divides_result(self, step: Step) -> bool:
        """Whether it only takes a map apart, of which a part is read after the region."""
        return step.is_tuple and any(self.network.positions.get(u.name, 0) >= self.end for u in step.node.users)

    def _replace(self, results: Sequence[int]) -> None:
        inside = set(self.replaced)
        for position in results:
            for node in self._names(position):
                for user in [u for u in node.users if u not in inside]:
                    user.replace_input_with(node, self.whole[position])
        for node in reversed(self.replaced):
            self.graph.erase_node(node)

    def _names(self, position: int) -> list[Node]:
        """The node of a result, and those whose memory it overwrote: later readers may name any of them."""
        found = [self.network.steps[position].node]
        while (before := self.network.steps[position].writes) >= self.start:
            found.append(self.network.steps[before].node)
            position = before
        return found

    def _lay(self, instruction: Instruction, tile: int) -> None:
        position = instruction.read.position if isinstance(instruction, Write) else instruction.makes.position
        self.near = self.network.steps[position]
        pieces = self.form.tiles * (1 + len(self.sweeps))
        self.mark = TileMark(self.number, tile, pieces, self.near.node.name)
        if isinstance(instruction, Run):
            self.value[instruction.makes] = self._run(self.near, instruction)
        elif isinstance(instruction, Join):
            parts = [self.value[p] for p in instruction.parts]
            axis = (self.near.axes or (2, 3))[0]
            self.value[instruction.makes] = self._call(torch.cat, (parts, axis), "joined")
        elif isinstance(instruction, Keep):
            read = Read(position, instruction.piece, instruction.makes.box)
            self.value[instruction.makes] = self._node("call_method", "clone", (self._read(read),), "kept")
        elif isinstance(instruction, Add):
            added = self._node("call_method", "sum", (self._read(instruction.read), (2, 3), True), "summed")
            if instruction.before is not None:
                added = self._call(operator.add, (self.value[instruction.before], added), "added")
            self.value[instruction.makes] = added
        else:
            self._write(instruction.read)

    def _run(self, step: Step, run: Run) -> Node:
        values = [self._read(read) for read in run.reads]
        laid = self.run_on(step, run, values)
        (top, bottom), (left, right) = run.makes.box
        rows, columns = run.rows, run.columns
        wanted = ((rows.skip, rows.skip + bottom - top), (columns.skip, columns.skip + right - left))
        return self._cut(laid, step, wanted, (rows.length, columns.length))

    def _read(self, read: Read) -> Node:
        step = self.network.steps[read.position]
        if read.piece is not None:
            return self._cut(self.value[read.piece], step, *_within(read.box, read.piece.box))
        if step.ready is not None:
            return step.node
        if self.mean is not None and step.position == self.main.mean:
            return self.mean
        return self._cut(step.node, step, read.box, step.sides)

    def _cut(self, value: Node, step: Step, box: Box, lengths: tuple[int, int]) -> Node:
        """A part of a value, as a view."""
        if all(span == (0, length) for span, length in zip(box, lengths, strict=True)):
            return value
        return self._call(operator.getitem, (value, self._index(step, box)), "part")

    def _index(self, step: Step, box: Box) -> tuple[slice, ...]:
        assert step.axes is not None
        index = [slice(None)] * len(step.shape)
        for axis, (low, high) in zip(step.axes, box, strict=True):
            index[axis] = slice(low, high)
        return tuple(index)

    def _allocate(self, step: Step) -> Node:
        """Memory for a whole result, of the example's size but for the batch."""
        source = next(
            self.network.steps[o.position].node
            for s in self.steps
            for o in s.operands
            if o.position < self.start and self.network.steps[o.position].ready is None
        )
        self.near, self.mark = step, None
        batch = self._node("call_method", "size", (source, 0), "batch")
        return self._node("call_method", "new_empty", (source, (batch, *step.shape[1:])), "whole")

    def _write(self, read: Read) -> None:
        step = self.network.steps[read.position]
        value = self._read(read)
        if self.join == "write":
            self._call(operator.setitem, (self.whole[read.position], self._index(step, read.box), value), "written")
        else:
            self.written.setdefault(read.position, []).append((read.box, value))

    def _concatenate(self, step: Step) -> Node:
        """Tiles to rows, rows to the map."""
        assert step.axes is not None
        self.near, self.mark = step, None
        rows: dict[int, list[Node]] = {}
        for (span, _), value in self.written[step.position]:
            rows.setdefault(span[0], []).append(value)
        lines = [self._joined(row, step.axes[1], "row") for row in rows.values()]
        return self._joined(lines, step.axes[0], "whole")

    def _joined(self, parts: list[Node], axis: int, name: str) -> Node:
        return parts[0] if len(parts) == 1 else self._call(torch.cat, (parts, axis), name)


def _within(inner: Box, outer: Box) -> tuple[Box, tuple[int, int]]:
    """A box as seen from the corner of another, and the lengths of that."""
    (top, bottom), (left, right) = outer
    rows, columns = inner
    relative = ((rows[0] - top, rows[1] - top), (columns[0] - left, columns[1] - left))
    return relative, (bottom - top, right - left)
