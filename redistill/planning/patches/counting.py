"""Counting: bytes and multiply-accumulates of a region in a form, before anything is rewritten.

Memory is counted as the convention counts it: the instructions become a record like that of a graph, and the same
``lifetimes`` are taken of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from redistill.memory.lifetimes import lifetimes, timeline
from redistill.memory.recording import GraphRecord, Operation, Storage
from redistill.planning.patches.axes import Span, Use
from redistill.planning.patches.gates import Stretch
from redistill.planning.patches.network import PatchNetwork, Step
from redistill.planning.patches.programs import (
    Add,
    AxisPart,
    Fronts,
    Instruction,
    Join,
    Keep,
    Piece,
    Read,
    Run,
    Write,
    strip_program,
    sum_so_far,
    sweep_program,
    tile_program,
)


class Counter:
    """Turns instructions into recorded operations, and those into the bytes alive at once."""

    def __init__(self, network: PatchNetwork, start: int) -> None:
        self.network = network
        self.start = start
        self.operations: list[Operation] = []
        self.storages: list[Storage] = []
        self.held: dict[Piece, tuple[int, ...]] = {}

    def peak(self, program: Iterable[Instruction], before: Iterable[Piece] = (), after: Iterable[Piece] = ()) -> int:
        """Bytes of pieces alive at once while ``program`` runs; those ``before`` are there, those ``after`` stay."""
        for piece in before:
            self._copy((), piece)
        for instruction in program:
            if isinstance(instruction, Run):
                self._run(instruction)
            elif isinstance(instruction, Join):
                self._copy(instruction.parts, instruction.makes)
            elif isinstance(instruction, Keep):
                self._copy((instruction.piece,), instruction.makes)
            elif isinstance(instruction, Add):
                self._add(instruction)
            else:
                self._note(self._storages((instruction.read,)), ())
        self._note(tuple(s for piece in after for s in self.held[piece]), ())
        record = GraphRecord(tuple(self.operations), tuple(self.storages))
        convention = self.network.convention
        return max(step.live_bytes for step in timeline(record, lifetimes(record, convention), convention))

    def _run(self, run: Run) -> None:
        step = self.network.steps[run.position]
        reads = self._storages(run.reads)
        if self.network.is_folded(step, self.start):
            self.held[run.makes] = reads
            return
        if any(u.before or u.after for u in (run.rows, run.columns)):
            first = step.operands[0].position
            size = self.network.value_bytes(first) * padded(run.rows) * padded(run.columns)
            reads = (*self._note(reads[:1], (size,)), *reads[1:])
        cells = run.rows.length * run.columns.length
        made: tuple[int, ...] = ()
        if step.cell_bytes:
            made = (step.cell_bytes * cells,)
        transient = step.recorded.transient_bytes * cells // max(step.sides[0] * step.sides[1], 1)
        created = self._note(reads, made, step, transient)
        self.held[run.makes] = created or reads[:1]

    def _add(self, add: Add) -> None:
        size = self.network.value_bytes(add.makes.position)
        added = self._note(self._storages((add.read,)), (size,))
        if add.before is not None:
            added = self._note((*self.held[add.before], *added), (size,), overwrites=True)
        self.held[add.makes] = added

    def _copy(self, pieces: Sequence[Piece], makes: Piece) -> None:
        (low, high), (left, right) = makes.box
        size = self.network.value_bytes(makes.position) * (high - low) * (right - left)
        self.held[makes] = self._note(tuple(s for p in pieces for s in self.held[p]), (size,))

    def _storages(self, reads: Sequence[Read]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(s for r in reads if r.piece is not None for s in self.held[r.piece]))

    def _note(
        self,
        reads: tuple[int, ...],
        sizes: tuple[int, ...],
        step: Step | None = None,
        transient: int = 0,
        overwrites: bool = False,
    ) -> tuple[int, ...]:
        created = tuple(range(len(self.storages), len(self.storages) + len(sizes)))
        self.storages += [Storage("", "", (size,), "", size, False) for size in sizes]
        mutates = reads[:1] if step is not None and step.writes >= self.start else ()
        overwrites, folds = (step.recorded.overwrites, step.recorded.folds) if step is not None else (overwrites, False)
        self.operations.append(Operation("", "", (), reads, created, mutates, transient, 0, overwrites, folds))
        return created


def padded(use: Use) -> int:
    """How long what is read is, with what is padded explicitly."""
    return use.high - use.low + use.before + use.after


def tiles_peak(
    network: PatchNetwork, stretch: Stretch, rows: Sequence[AxisPart], columns: Sequence[AxisPart], enough: int,
    mean: int = -1,
) -> int:  # fmt: skip
    """Bytes of pieces alive at once in the tile that needs most; tiles alike are counted once.

    Where a tile needs more than ``enough``, the rest are not looked at. With ``mean``, they are only added up for it.
    """
    kinds = [_kinds(parts, stretch.start) for parts in (rows, columns)]
    most = 0
    for high, wide in product(*kinds):
        counter = Counter(network, stretch.start)
        if mean >= 0:
            program = sweep_program(network, stretch, high, wide, 1, mean)
            most = max(most, counter.peak(program, [sum_so_far(mean, 0)], [sum_so_far(mean, 1)]))
        else:
            most = max(most, counter.peak(tile_program(network, stretch, high, wide)))
        if most > enough:
            break
    return most


def _kinds(parts: Sequence[AxisPart], start: int) -> list[AxisPart]:
    found: dict[Any, AxisPart] = {}
    for part in parts:
        shape = tuple((t, u.high - u.low, u.length, u.before, u.after) for t, u in part.uses.items() if t >= start)
        found.setdefault(shape, part)
    return list(found.values())


def strips_peak(
    network: PatchNetwork, start: int, end: int, found: Fronts, columns: AxisPart, parts: int, enough: int
) -> int:
    """Bytes of pieces alive at once in the strip that needs most; strips alike are counted once.

    Where a strip needs more than ``enough``, the rest are not looked at.
    """
    peaks: dict[Any, int] = {}
    kept: dict[int, Piece] = {}
    for strip in range(parts):
        before = tuple(kept.values())
        program = list(strip_program(network, start, end, found, columns, strip, kept))
        kind = (tuple(_extent(p) for p in before), tuple(map(_extent_of, program)))
        if kind not in peaks:
            peaks[kind] = Counter(network, start).peak(program, before, kept.values())
            if peaks[kind] > enough:
                break
    return max(peaks.values())


def tile_bound(network: PatchNetwork, stretch: Stretch, rows: AxisPart, columns: AxisPart) -> int:
    """Bytes that the tile needs at least: each operation's output beside its first input."""
    most = 0
    for step in network.steps[stretch.start : stretch.end]:
        if step.cell_bytes and not step.recorded.folds and step.position in rows.uses:
            first = step.operands[0].position
            size = step.cell_bytes * rows.uses[step.position].length * columns.uses[step.position].length
            if first >= stretch.start and first in rows.uses and not step.recorded.overwrites:
                size += network.value_bytes(first) * _length(rows.made[first]) * _length(columns.made[first])
            most = max(most, size)
    return most


def strip_bound(network: PatchNetwork, start: int, end: int, found: Fronts, columns: AxisPart, strip: int) -> int:
    """Bytes that a strip needs at least: the rows kept for it, and an operation's output beside its new input."""
    most = kept = 0
    for step in network.steps[start:end]:
        front, first = found.fronts.get(step.position), found.kept_from.get(step.position)
        if front is None or step.position not in columns.made or step.axes is None:
            continue  # sizes make no memory
        row = network.value_bytes(step.position) * _length(columns.made[step.position])
        if first is not None and strip and not step.recorded.folds:
            kept += row * max(0, front[strip - 1] - min(first[strip:]))
        if step.cell_bytes and not step.recorded.folds:
            most = max(most, row * (front[strip] - (front[strip - 1] if strip else 0)))
    return most + kept


def _length(span: Span) -> int:
    return span[1] - span[0]


def _extent(piece: Piece) -> tuple[int, int]:
    (low, high), _ = piece.box
    return piece.position, high - low


def _extent_of(instruction: Instruction) -> tuple[Any, ...]:
    if isinstance(instruction, Write):
        return (instruction.read.position,)
    made = instruction.makes
    rows = (instruction.rows.length, padded(instruction.rows)) if isinstance(instruction, Run) else ()
    return (type(instruction), *_extent(made), *rows)


def share_of_work(step: Step, use: Use, axis: int) -> float:
    """The part of an operation's work along an axis that a use of it is."""
    assert step.rule is not None
    if step.rule.by_input:
        return (use.high - use.low) / int(getattr(step.axis_rule(axis), "size"))  # noqa: B009
    return use.length / step.sides[axis]
