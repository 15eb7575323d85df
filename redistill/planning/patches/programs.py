"""Programs: a region run piece by piece, as the instructions that are both counted when planning and laid by the pass.

Tiles compute what they need of every map anew. Strips, from top to bottom, compute every row once and keep the rows
that the next strip needs as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from redistill.planning.patches.axes import Span, TileError, Use
from redistill.planning.patches.gates import Stretch
from redistill.planning.patches.network import PatchNetwork, Step

Box = tuple[Span, Span]
"""Rows and columns."""


@dataclass(frozen=True)
class Form:
    """How a region is run: in ``rows`` x ``columns`` tiles, or in as many strips as rows, keeping rows."""

    rows: int
    columns: int = 1
    keeps: bool = False

    @property
    def tiles(self) -> int:
        """How many pieces there are."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows} strips" if self.keeps else f"{self.rows}x{self.columns} tiles"


@dataclass(frozen=True)
class Region:
    """The operations from cut ``start`` to cut ``end``, run in a form."""

    start: int
    end: int
    form: Form


@dataclass(frozen=True)
class Piece:
    """A part of an operation's result that has been computed: ``box`` is which part of the whole map it is."""

    position: int
    box: Box
    serial: int


@dataclass(frozen=True)
class Read:
    """A part of a piece, or of a whole map from outside the region (``piece`` None)."""

    position: int
    piece: Piece | None
    box: Box


@dataclass(frozen=True)
class Run:
    """Run an operation on parts of its inputs; ``reads`` in the order of its operands."""

    position: int
    rows: Use
    columns: Use
    reads: tuple[Read, ...]
    makes: Piece
    tile: int


@dataclass(frozen=True)
class Join:
    """Put kept rows and new ones together."""

    parts: tuple[Piece, Piece]
    makes: Piece


@dataclass(frozen=True)
class Keep:
    """Copy the last rows of a piece, which the next strip needs as well."""

    piece: Piece
    makes: Piece


@dataclass(frozen=True)
class Write:
    """Write what is there of a result of the region into its place."""

    read: Read


@dataclass(frozen=True)
class Add:
    """Add up a piece over rows and columns, to what the pieces before it came to."""

    read: Read
    before: Piece | None
    makes: Piece


Instruction = Run | Join | Keep | Write | Add


@dataclass(frozen=True)
class AxisPart:
    """What one tile needs along one axis: for each operation of the region the span it makes, and how.

    ``fails`` is the last operation that cannot make its part by itself, -1 if there is none.
    """

    made: dict[int, Span]
    uses: dict[int, Use]
    fails: int = -1


def divide(side: int, parts: int) -> list[Span]:
    """``parts`` spans of nearly equal length, none empty unless the side is shorter than there are parts."""
    edges = [i * side // parts for i in range(parts + 1)]
    return list(pairwise(edges))


def reach_back(network: PatchNetwork, stretch: Stretch, parts: int, axis: int) -> list[AxisPart]:
    """For each of ``parts`` tiles along an axis what it needs of each operation of a stretch."""
    return [reach_back_of(network, stretch, axis, parts, tile) for tile in range(parts)]


def reach_back_of(network: PatchNetwork, stretch: Stretch, axis: int, parts: int, tile: int) -> AxisPart:
    """What one of ``parts`` tiles along an axis needs of each operation of a stretch."""
    needed: dict[int, Span] = {}
    uses: dict[int, Use] = {}
    aside = network.aside(stretch.mean) if stretch.mean >= 0 else ()
    for step in reversed(network.steps[stretch.start : stretch.end]):
        if step.ready is not None or step.position in aside:
            continue
        if stretch.wants(step):
            own = divide(step.sides[axis], parts)[tile]
            if own[0] == own[1]:
                return AxisPart(needed, uses, step.position)
            _widen(needed, step.position, own)
        if step.position in needed:
            try:
                uses[step.position] = use = step.axis_rule(axis).use(*needed[step.position])
            except TileError:
                return AxisPart(needed, uses, step.position)
            for operand in step.operands:
                _widen(needed, operand.position, (use.low, use.high) if operand.spread[axis] else (0, 1))
    return AxisPart(needed, uses)


def _widen(needed: dict[int, Span], position: int, span: Span) -> None:
    known = needed.get(position, span)
    needed[position] = (min(known[0], span[0]), max(known[1], span[1]))


def tile_program(
    network: PatchNetwork, stretch: Stretch, rows: AxisPart, columns: AxisPart, tile: int = 0
) -> Iterator[Instruction]:
    """One tile of a stretch, computed for itself."""
    pieces: dict[int, Piece] = {}
    for step in network.steps[stretch.start : stretch.end]:
        if step.position not in rows.uses or step.position not in columns.uses:
            continue
        high, wide = rows.uses[step.position], columns.uses[step.position]
        box = (rows.made[step.position], columns.made[step.position])
        made = pieces[step.position] = Piece(step.position, box, tile)
        yield Run(step.position, high, wide, _reads(step, stretch.start, high, wide, pieces), made, tile)
        if stretch.wants(step):
            yield Write(Read(step.position, made, box))


def sweep_program(
    network: PatchNetwork, stretch: Stretch, rows: AxisPart, columns: AxisPart, tile: int, mean: int
) -> Iterator[Instruction]:
    """One tile of a first sweep: nothing is kept of it but what it adds to the mean."""
    for instruction in tile_program(network, stretch, rows, columns, tile):
        if isinstance(instruction, Write):
            before = sum_so_far(mean, tile - 1) if tile else None
            yield Add(instruction.read, before, sum_so_far(mean, tile))
        else:
            yield instruction


def sum_so_far(mean: int, tile: int) -> Piece:
    """What the tiles up to one come to."""
    return Piece(mean, ((0, 1), (0, 1)), tile)


def _reads(step: Step, start: int, high: Use, wide: Use, pieces: dict[int, Piece]) -> tuple[Read, ...]:
    found = []
    for operand in step.operands:
        box = tuple(
            (use.low, use.high) if spread else (0, 1) for use, spread in zip((high, wide), operand.spread, strict=True)
        )
        found.append(Read(operand.position, pieces.get(operand.position), (box[0], box[1])))
    return tuple(found)


@dataclass(frozen=True)
class Fronts:
    """For each operation of a region in strips: how far it has come after each, and the first row each needs of it."""

    fronts: dict[int, list[int]]
    kept_from: dict[int, list[int]]
    uses: dict[int, list[Use | None]]


def find_fronts(network: PatchNetwork, start: int, end: int, parts: int) -> Fronts:
    """Which rows every operation makes in each strip.

    Raises:
        TileError: an operation cannot make its rows by itself.
    """
    fronts: dict[int, list[int]] = {}
    lows: dict[int, list[int]] = {}
    uses: dict[int, list[Use | None]] = {}
    for step in reversed(network.steps[start:end]):
        if step.ready is not None:
            continue
        if step.last_use >= end:
            spans = divide(step.sides[0], parts)
            if any(low == high for low, high in spans):
                raise TileError(f"a map of height {step.sides[0]} cannot be divided into {parts}")
            _advance(fronts, step.position, [high for _, high in spans])
        if step.position in fronts:
            uses[step.position] = _strip_uses(step, fronts[step.position])
            _pass_on(step, uses[step.position], fronts, lows)
    return Fronts(fronts, lows, uses)


def _strip_uses(step: Step, front: list[int]) -> list[Use | None]:
    rule = step.axis_rule(0)
    return [rule.use(low, high) if high > low else None for low, high in zip([0, *front[:-1]], front, strict=True)]


def _pass_on(step: Step, uses: Sequence[Use | None], fronts: dict[int, list[int]], lows: dict[int, list[int]]) -> None:
    for operand in step.operands:
        if not operand.spread[0]:
            spans = [(0, 1) if use else None for use in uses]
        else:
            spans = [(use.low, use.high) if use else None for use in uses]
        reached = 0
        highs = [reached := max(reached, span[1]) if span else reached for span in spans]
        _advance(fronts, operand.position, highs)
        first = lows.setdefault(operand.position, [_FAR] * len(uses))
        lows[operand.position] = [min(low, s[0]) if s else low for low, s in zip(first, spans, strict=True)]


_FAR = 1 << 60


def _advance(fronts: dict[int, list[int]], position: int, highs: list[int]) -> None:
    known = fronts.get(position, [0] * len(highs))
    fronts[position] = [max(a, b) for a, b in zip(known, highs, strict=True)]


def strip_program(
    network: PatchNetwork, start: int, end: int, found: Fronts, columns: AxisPart, strip: int, kept: dict[int, Piece]
) -> Iterator[Instruction]:
    """One strip of a region; ``kept`` holds the rows kept from the strip before, and then those for the next."""
    pieces: dict[int, Piece] = {}
    for step in network.steps[start:end]:
        if step.position in found.fronts and step.position in columns.uses:
            yield from _strip_step(step, strip, start, end, found, columns, pieces, kept)


def _strip_step(
    step: Step, strip: int, start: int, end: int, found: Fronts, columns: AxisPart,
    pieces: dict[int, Piece], kept: dict[int, Piece],
) -> Iterator[Instruction]:  # fmt: skip
    position, wide = step.position, columns.uses[step.position]
    span = columns.made[position]
    high = found.uses[position][strip]
    low, front = (found.fronts[position][strip - 1] if strip else 0), found.fronts[position][strip]
    new = None
    if high is not None:
        new = Piece(position, ((low, front), span), 4 * strip)
        yield Run(position, high, wide, _reads(step, start, high, wide, pieces), new, strip)
        if step.last_use >= end:
            yield Write(Read(position, new, new.box))
    old, first = kept.pop(position, None), found.kept_from.get(position)
    piece = new or old
    if new is not None and old is not None and first is not None and min(first[strip:]) < low:
        piece = Piece(position, ((old.box[0][0], front), span), 4 * strip + 1)
        yield Join((old, new), piece)
    if piece is not None:
        pieces[position] = piece
        later = min(first[strip + 1 :], default=_FAR) if first is not None else _FAR
        if later < front:
            yield from _keep(piece, max(later, piece.box[0][0]), strip, kept)


def _keep(piece: Piece, low: int, strip: int, kept: dict[int, Piece]) -> Iterator[Instruction]:
    if low == piece.box[0][0] and piece.serial % 4 == 2:
        kept[piece.position] = piece
        return
    made = Piece(piece.position, ((low, piece.box[0][1]), piece.box[1]), 4 * strip + 2)
    kept[piece.position] = made
    yield Keep(piece, made)
