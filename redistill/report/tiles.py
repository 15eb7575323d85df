"""Tiles on a timeline: which piece of how many a step is, told by the name that the pass gave its node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from redistill.memory.lifetimes import Step

_PIECE = re.compile(r"(.+?)_tile(\d+)of(\d+)(?:_([a-z]+))?(?:_\d+)?")
_GATHERED = re.compile(r"(.+?)_(?:batch|whole|row)(?:_\d+)?")


@dataclass(frozen=True)
class Tile:
    """A piece: the node that it is a piece of, the how-manieth of how many, and what is done, if not that node's work.

    >>> tile_of("features_0_0_tile2of12_padded")
    Tile(origin='features_0_0', number=2, count=12, action='padded')
    """

    origin: str
    number: int
    count: int
    action: str = ""

    def __str__(self) -> str:
        return f"tile {self.number} of {self.count}" + (f", {self.action}" if self.action else "")


def tile_of(node: str) -> Tile | None:
    """The piece that a node computes; None for a node that runs whole."""
    found = _PIECE.fullmatch(node)
    return Tile(found[1], int(found[2]), int(found[3]), found[4] or "") if found else None


def origin_of(node: str) -> str:
    """The node that a piece, or the map that its pieces are gathered in, stands for."""
    found = _PIECE.fullmatch(node) or _GATHERED.fullmatch(node)
    return found[1] if found else node


def regions_of_steps(timeline: Iterable[Step]) -> Iterator[int | None]:
    """For each step in which region it is one of the pieces; a new one begins where counting starts again."""
    region, last = -1, None
    for step in timeline:
        tile = tile_of(step.node)
        if tile is None:
            yield None
            continue
        if last is None or tile.count != last.count or tile.number < last.number:
            region += 1
        last = tile
        yield region
