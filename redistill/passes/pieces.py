"""Pieces: the nodes that run a region piece by piece, laid in the place of those that run it whole."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from redistill.passes.folded import FoldedConvolution, FoldedWeights
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
from redistill.planning.patches.rules import expand_index, pad_arguments, pads_itself

TILE = "tile"  # key in node.meta: which piece of which region a laid node belongs to


@dataclass(frozen=True)
class TileMark:
    """Which piece of how many a node belongs to, and the node that it runs a part of."""

    region: int
    tile: int
    tiles: int
    origin: str


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


class RegionLayer:
    """Lays the instructions of one region into the graph, before its first node."""

    def __init__(
        self, graph_module: GraphModule, network: PatchNetwork, start: int, end: int, number: int, form: Form, join: str
    ) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.network = network
        self.start, self.end, self.number, self.form, self.join = start, end, number, form, join
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
        self.mark: TileMark | None = None
        self.near: Step | None = None
        self.mean: Node | None = None
        self.weights: dict[str, FoldedWeights] = {}

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
        assert step.rule is not None
        laid: Node = getattr(self, f"_lay_{step.rule.action}")(step, run, values)
        (top, bottom), (left, right) = run.makes.box
        rows, columns = run.rows, run.columns
        wanted = ((rows.skip, rows.skip + bottom - top), (columns.skip, columns.skip + right - left))
        return self._cut(laid, step, wanted, (rows.length, columns.length))

    def _lay_call(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        if self.network.is_folded(step, self.start):
            return values[0]
        node = step.node
        taken = dict(zip(node.all_input_nodes, values, strict=True))
        args, kwargs = map_arg(node.args, taken.__getitem__), map_arg(node.kwargs, taken.__getitem__)
        return self._node(node.op, node.target, args, "", kwargs)

    def _lay_item(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        divided, index = step.node.args
        assert isinstance(divided, Node)
        args = map_arg(divided.args, lambda _: values[0])
        several = self._node(divided.op, divided.target, args, "several", divided.kwargs)
        return self._call(operator.getitem, (several, index))

    def _lay_window(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        module: Any = self.network.modules[str(step.node.target)]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        path = self._variant(step, padding=(run.rows.padding, run.columns.padding), padding_mode="zeros")
        return self._node("call_module", path, (self._padded(values[0], run, mode, 0.0),))

    def _lay_transposed(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        padding, extra = ((getattr(run.rows, n), getattr(run.columns, n)) for n in ("padding", "extra"))
        return self._node("call_module", self._variant(step, padding=padding, output_padding=extra), (values[0],))

    def _lay_enlarge(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        assert step.rule is not None
        rules: Any = step.rule.along
        module = self.network.modules.get(str(step.node.target)) if step.node.op == "call_module" else None
        arguments = dict(zip(("input", "size", "scale_factor", "mode"), step.node.args, strict=False))
        mode = getattr(module, "mode", None) or (arguments | dict(step.node.kwargs)).get("mode", "nearest")
        options = {"scale_factor": (float(rules[0].factor), float(rules[1].factor)), "mode": mode}
        return self._call(F.interpolate, (values[0],), "", options)

    def _lay_pad(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        module = self.network.modules.get(str(step.node.target)) if step.node.op == "call_module" else None
        _, mode, value = pad_arguments(step.node, module)
        return self._padded(values[0], run, mode, value)

    def _lay_slice(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        parts = expand_index(step.node.args[1], len(step.shape))
        assert parts is not None
        assert step.axes is not None
        for axis in step.axes:
            parts[axis] = slice(None, None, parts[axis].step)
        return self._call(operator.getitem, (values[0], tuple(parts)))

    def _padded(self, value: Node, run: Run, mode: str, fill: float) -> Node:
        amounts = (run.columns.before, run.columns.after, run.rows.before, run.rows.after)
        if not any(amounts):
            return value
        return self._call(F.pad, (value, amounts, mode, *((fill,) if mode == "constant" else ())), "padded")

    def _variant(self, step: Step, **settings: Any) -> str:
        """The path of a module like the step's with other settings, which shares its weights."""
        path = str(step.node.target)
        module = self.network.modules[path]
        norm = self.network.norm_after(step, self.end)
        changes = pads_itself(module) or any(getattr(module, name) != value for name, value in settings.items())
        if norm is None and not changes:
            return path
        sizes = (f"{'x'.join(map(str, v))}" for v in settings.values() if not isinstance(v, str))
        marks = ["folded" if path in self.weights else "folded_first"] if norm else []
        name = "_".join([path, *(sizes if changes else ()), *marks])
        if name not in self.network.modules:
            variant = make_variant(module, settings) if changes else module
            self.network.modules[name] = self._folded(path, variant, norm) if norm else variant
            self.graph_module.add_submodule(name, self.network.modules[name])
        return name

    def _folded(self, path: str, convolution: nn.Module, norm: Step) -> nn.Module:
        """A convolution with the norm after it in its weights, which all variants of it share."""
        normalise: Any = self.network.modules[str(norm.node.target)]
        is_first = path not in self.weights
        if is_first:
            self.weights[path] = FoldedWeights(self.network.modules[path], normalise)  # type: ignore[arg-type]
        return FoldedConvolution(convolution, normalise, self.weights[path], is_first)  # type: ignore[arg-type]

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

    def _call(self, target: Any, args: tuple[Any, ...], name: str = "", kwargs: Any = None) -> Node:
        return self._node("call_function", target, args, name, kwargs)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], name: str = "", kwargs: Any = None) -> Node:
        assert self.near is not None
        origin = self.near.node
        tile = f"tile{self.mark.tile + 1}of{self.mark.tiles}" if self.mark else ""
        title = "_".join(filter(None, (origin.name, tile, name)))
        node = self.graph.create_node(op, target, args, kwargs or {}, title)
        node.meta = {k: v for k, v in origin.meta.items() if k == "nn_module_stack"}
        if origin.op == "call_module":
            node.meta.setdefault("nn_module_stack", {str(origin.target): (str(origin.target), nn.Module)})
        if self.mark is not None:
            node.meta[TILE] = self.mark
        return node


def _within(inner: Box, outer: Box) -> tuple[Box, tuple[int, int]]:
    """A box as seen from the corner of another, and the lengths of that."""
    (top, bottom), (left, right) = outer
    rows, columns = inner
    relative = ((rows[0] - top, rows[1] - top), (columns[0] - left, columns[1] - left))
    return relative, (bottom - top, right - left)


def make_variant(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A module with other settings that shares the weights, whatever becomes of them."""
    variant: Any = copy.copy(module)  # its table of parameters is the very same
    for name, value in settings.items():
        setattr(variant, name, value)
    if pads_itself(module):
        variant.__class__ = nn.Conv2d  # what its own class pads is padded before it
    if "padding_mode" in settings:
        variant._reversed_padding_repeated_twice = [p for p in reversed(settings["padding"]) for _ in (0, 1)]
    return variant  # type: ignore[no-any-return]
