"""Reaches: what the pieces of a network need of every operation, and their share of its work, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from redistill.planning.patches.axes import TileError, Use
from redistill.planning.patches.counting import share_of_work
from redistill.planning.patches.gates import Stretch
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.programs import AxisPart, Fronts, find_fronts, reach_back, reach_back_of

Key = tuple[int, int, int, int, int]


class Reaches:
    """Of one network; what is known of a stretch serves all that begin later and end alike."""

    def __init__(self, network: PatchNetwork) -> None:
        self.network = network
        self._tiles: dict[Key, tuple[int, list[AxisPart]]] = {}
        self._middles: dict[Key, tuple[int, AxisPart]] = {}
        self._work: dict[Key, tuple[list[AxisPart], np.ndarray]] = {}
        self._fronts: dict[tuple[int, int], tuple[int, Fronts]] = {}
        self._strip_work: dict[tuple[int, int], tuple[Fronts, np.ndarray]] = {}

    def tiles(self, stretch: Stretch, parts: int, axis: int) -> list[AxisPart]:
        """What each tile along an axis needs.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        key = self._key(stretch, parts, axis)
        known = self._tiles.get(key)
        if known is None or known[0] > stretch.start:
            known = self._tiles[key] = (stretch.start, reach_back(self.network, stretch, parts, key[-1]))
        if any(part.fails >= stretch.start for part in known[1]):
            raise TileError(f"the region cannot be divided into {parts}")
        return known[1]

    def middle(self, stretch: Stretch, parts: int, axis: int) -> AxisPart:
        """What the tile in the middle of an axis needs.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        key = self._key(stretch, parts, axis)
        known = self._middles.get(key)
        if known is None or known[0] > stretch.start:
            part = reach_back_of(self.network, stretch, key[-1], parts, parts // 2)
            known = self._middles[key] = (stretch.start, part)
        if known[1].fails >= stretch.start:
            raise TileError(f"the region cannot be divided into {parts}")
        return known[1]

    def tile_work(self, stretch: Stretch, parts: int, axis: int) -> np.ndarray:
        """For each operation the length that all tiles along an axis compute, as a share of the whole.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        key, tiles = self._key(stretch, parts, axis), self.tiles(stretch, parts, axis)
        known = self._work.get(key)
        if known is None or known[0] is not tiles:
            known = self._work[key] = (tiles, self._shares([p.uses for p in tiles], key[-1]))
        return known[1]

    def fronts(self, start: int, end: int, parts: int) -> Fronts:
        """Which rows each strip makes.

        Raises:
            TileError: an operation cannot make its rows by itself.
        """
        known = self._fronts.get((end, parts))
        if known is None or known[0] > start:
            known = self._fronts[end, parts] = (start, find_fronts(self.network, start, end, parts))
        return known[1]

    def strip_work(self, start: int, end: int, parts: int) -> np.ndarray:
        """The share of rows in strips, each of which is computed once.

        Raises:
            TileError: an operation cannot make its rows by itself.
        """
        fronts = self.fronts(start, end, parts)
        known = self._strip_work.get((end, parts))
        if known is None or known[0] is not fronts:
            uses = [{t: u for t, us in fronts.uses.items() if (u := us[i])} for i in range(parts)]
            known = self._strip_work[end, parts] = (fronts, self._shares(uses, 0))
        return known[1]

    def _key(self, stretch: Stretch, parts: int, axis: int) -> Key:
        return (stretch.end, stretch.mean, stretch.source, parts, 0 if self.network.is_square else axis)

    def _shares(self, parts: Sequence[Mapping[int, Use]], axis: int) -> np.ndarray:
        found = np.zeros(len(self.network))
        for uses in parts:
            for position, use in uses.items():
                step = self.network.steps[position]
                if step.macs:
                    found[position] += share_of_work(step, use, axis)
        return found
