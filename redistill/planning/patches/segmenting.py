"""Segmenting: the cheapest way to run a network under a byte limit, as a shortest path over its cuts.

A cut lies between two operations. An edge from cut to cut is either a stretch that fits as it is (no extra work), or a
region in a form whose bytes fit; its length is the multiply-accumulates that the form computes more than the whole.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter

import networkx as nx
import numpy as np

from redistill.internal.caching import cached_method
from redistill.planning.patches.axes import Pool, TileError, Use, Window
from redistill.planning.patches.counting import share_of_work, strip_bound, strips_peak, tile_bound, tiles_peak
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.paths import Edge, cheapest_path
from redistill.planning.patches.programs import (
    AxisPart,
    Form,
    Fronts,
    Region,
    find_fronts,
    reach_back,
    reach_back_of,
)


@dataclass(frozen=True)
class Lattice:
    """The forms considered: tiles of ``parts`` by ``parts``, at most ``most`` in all, and numbers of strips."""

    parts: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    strips: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112)
    most: int = 64


FINE = Lattice()
COARSE = Lattice((1, 2, 4, 8), (2, 4, 8, 14, 28, 56), 32)
"""Enough to tell quickly what patches would do."""
NEARLY = 0.01
"""Segmentations within this share of the network's multiply-accumulates are weighed by their calls too."""
CALL = 2e-5
"""What a call more is worth, as a share of the network's multiply-accumulates: every call takes time of its own."""


@dataclass(frozen=True)
class PatchCertificate:
    """Why no cheaper segmentation of the lattice fits: a shortest path over so many cuts and edges."""

    cuts: int
    regions: int
    edges: int

    def __str__(self) -> str:
        return f"cheapest path over {self.cuts} cuts, {self.edges} of {self.regions} regions and forms fit"


@dataclass(frozen=True)
class Segmentation:
    """Regions to run in parts, all else as it is; what that costs and needs, as counted before it is carried out."""

    regions: tuple[Region, ...]
    extra_macs: int
    peak_bytes: int
    certificate: PatchCertificate | None = field(default=None, compare=False)

    @property
    def tiles(self) -> int:
        """How many pieces are run in all."""
        return sum(r.form.tiles for r in self.regions)


class Segmenter:
    """Finds segmentations of one network; what does not depend on the limit is computed once."""

    def __init__(
        self, network: PatchNetwork, max_extra_macs: float = 0.25, join: str = "write", lattice: Lattice = FINE
    ) -> None:
        self.network = network
        self.lattice = lattice
        self.join = join
        self.most_extra = int(max_extra_macs * network.macs)
        self._parts: dict[tuple[int, int, int], tuple[int, list[AxisPart]]] = {}
        self._middles: dict[tuple[int, int, int], tuple[int, AxisPart]] = {}
        self._work: dict[tuple[int, int, int], tuple[list[AxisPart], np.ndarray]] = {}
        self._fronts: dict[tuple[int, int], tuple[int, Fronts]] = {}
        self._edges: dict[tuple[int, int, Form], Edge | None] = {}
        self.tried = 0

    @cached_property
    def cuts(self) -> list[int]:
        """The cuts worth considering: not between a result and what only changes it position by position."""
        steps = self.network.steps
        return [c for c in range(len(steps) + 1) if c in (0, len(steps)) or not self._follows(c)]

    def _follows(self, cut: int) -> bool:
        step, before = self.network.steps[cut], self.network.steps[cut - 1]
        if step.ready is not None:
            return True
        alone = len(step.operands) == 1 and step.operands[0].position == cut - 1 and before.last_use == cut
        return alone and step.rule is not None and step.macs == 0 and (step.recorded.overwrites or not step.cell_bytes)

    def find(self, limit: int) -> Segmentation | None:
        """The segmentation of fewest extra multiply-accumulates within ``limit`` bytes; None if there is none."""
        graph = self.graph(limit)
        first, last = self.cuts[0], self.cuts[-1]
        if last not in graph or not nx.has_path(graph, first, last):
            return None
        to_go: dict[int, float] = nx.single_source_dijkstra_path_length(graph.reverse(copy=False), last, weight="cost")
        most = min(int(to_go[first] + NEARLY * self.network.macs), self.most_extra)
        if to_go[first] > self.most_extra:
            return None
        chosen = cheapest_path(graph, self.cuts, to_go, most, CALL * self.network.macs)
        edges = [e for e in chosen if e is not None]
        peak = max(self._peak_outside([e.region for e in edges]), max((e.peak_bytes for e in edges), default=0))
        fitting = len([1 for _, _, data in graph.edges(data=True) if data["edge"]])
        certificate = PatchCertificate(len(self.cuts), max(self.tried, fitting), fitting)
        return Segmentation(tuple(e.region for e in edges), sum(e.extra_macs for e in edges), peak, certificate)

    def bound(self) -> int:
        """Bytes that no segmentation stays below: what cannot be divided, and what is alive around what can."""
        first, last = self.cuts[0], self.cuts[-1]
        best = {first: 0}
        for before, end in pairwise(self.cuts):
            through = [max(best[before], *self.network.live[before:end])]
            through += [max(best[s], self.network.held(s, end)) for s in best if self.network.is_region(s, end)]
            best[end] = min(through)
        return best[last]

    def graph(self, limit: int) -> nx.MultiDiGraph[int]:
        """The cuts, with an edge (attributes ``edge``, ``cost``) for all that fits ``limit`` bytes."""
        graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        graph.add_nodes_from(self.cuts)
        for a, b in zip(self.cuts[:-1], self.cuts[1:], strict=True):
            if max(self.network.live[a:b], default=0) <= limit:
                graph.add_edge(a, b, edge=None, cost=0)
        for start, end in self._reachable_regions(graph, limit):
            for edge in self._fitting(start, end, limit):
                graph.add_edge(start, end, edge=edge, cost=max(edge.extra_macs, 0))
        return graph

    def _reachable_regions(self, graph: nx.MultiDiGraph[int], limit: int) -> Iterator[tuple[int, int]]:
        """The regions that lie on a way from the input to the output, as far as is known when each comes up."""
        hoped = nx.DiGraph(graph)
        pairs = sorted(self._regions(limit))
        hoped.add_edges_from(pairs)
        leads_on = nx.ancestors(hoped, self.cuts[-1]) | {self.cuts[-1]}
        reached: set[int] = set()
        for start, pairs_from in groupby(pairs, key=itemgetter(0)):
            if start not in reached:
                reached = nx.descendants(graph, self.cuts[0]) | {self.cuts[0]}
            if start in reached:
                yield from (pair for pair in pairs_from if pair[1] in leads_on)

    def _regions(self, limit: int) -> Iterator[tuple[int, int]]:
        """Pairs of cuts with something between them that does not fit, and little enough alive at both."""
        over = [t for t, level in enumerate(self.network.live) if level > limit]
        starts = sorted(self._starts(over))
        for end in self._ends(over):
            last_over = over[bisect_left(over, end) - 1]
            for start in starts[bisect_left(starts, self.network.reach_back[end]) : bisect_right(starts, last_over)]:
                if self.network.is_region(start, end) and self.network.held(start, end) < limit:
                    yield start, end

    def _ends(self, over: list[int]) -> list[int]:
        """Cuts with less alive than at any before, back to the last operation that does not fit."""
        found = []
        for before, after in zip(over, [*over[1:], len(self.network)], strict=True):
            least = None
            for cut in self.cuts:
                if before < cut <= after and (least is None or self.network.crossing[cut] < least):
                    least = self.network.crossing[cut]
                    found.append(cut)
        return found

    def _starts(self, over: list[int]) -> list[int]:
        """Cuts with less alive than at any after, up to the next operation that does not fit."""
        found = []
        for before, after in zip([-1, *over[:-1]], over, strict=True):
            least = None
            for cut in reversed(self.cuts):
                if before < cut <= after and (least is None or self.network.crossing[cut] < least):
                    least = self.network.crossing[cut]
                    found.append(cut)
        return found

    def _fitting(self, start: int, end: int, limit: int) -> list[Edge]:
        """Forms that fit, cheapest first; a dearer one only if it takes fewer calls and is nearly as cheap."""
        priced = sorted(self._priced(start, end, limit), key=lambda pair: (max(pair[1], 0), pair[0].tiles))
        found: list[Edge] = []
        for form, extra in priced:
            if found and extra > max(found[0].extra_macs, 0) + NEARLY * self.network.macs:
                break
            if found and self.calls(Region(start, end, form)) >= min(e.calls for e in found):
                continue
            edge = self._edge(Region(start, end, form), extra, limit)
            if edge.peak_bytes <= limit:
                found.append(edge)
        return found

    def _priced(self, start: int, end: int, limit: int) -> Iterator[tuple[Form, int]]:
        for form in self.forms(start, end):
            if self.floor(start, end, form) <= limit:
                extra = self.extra_macs(start, end, form)
                if extra is not None and extra <= self.most_extra:
                    yield form, extra

    @cached_method
    def floor(self, start: int, end: int, form: Form) -> float:
        """Bytes that a region needs at least in a form, by its middle piece; infinite where that cannot be run."""
        held, network = self.network.held(start, end), self.network
        try:
            columns = self._middle(start, end, form.columns, 1)
            if form.keeps:
                fronts = self.fronts(start, end, form.rows)
                return held + strip_bound(network, start, end, fronts, columns, form.rows // 2)
            return held + tile_bound(network, start, end, self._middle(start, end, form.rows, 0), columns)
        except TileError:
            return math.inf

    def _middle(self, start: int, end: int, parts: int, axis: int) -> AxisPart:
        """What the tile in the middle of an axis needs.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        axis = 0 if self.network.is_square else axis
        known = self._middles.get((end, parts, axis))
        if known is None or known[0] > start:
            known = (start, reach_back_of(self.network, start, end, axis, parts, parts // 2))
            self._middles[end, parts, axis] = known
        if known[1].fails >= start:
            raise TileError(f"the region cannot be divided into {parts}")
        return known[1]

    def forms(self, start: int, end: int) -> Iterator[Form]:
        """The forms that a region's results can be divided into."""
        results = [self.network.steps[t].sides for t in self.network.results(start, end)]
        height, width = (min(side[axis] for side in results) for axis in (0, 1))
        for rows in self.lattice.strips:
            if rows <= height:
                yield Form(rows, 1, keeps=True)
        for rows in self.lattice.parts:
            for columns in self.lattice.parts:
                if 1 < rows * columns <= self.lattice.most and rows <= height and columns <= width and rows >= columns:
                    yield Form(rows, columns)

    def extra_macs(self, start: int, end: int, form: Form) -> int | None:
        """Multiply-accumulates that the form computes more than the region as it is; None if it cannot be run so."""
        try:
            columns = self.axis_work(start, end, form.columns, 1)[start:end]
            rows = self.strip_work(start, end, form.rows) if form.keeps else self.axis_work(start, end, form.rows, 0)
        except TileError:
            return None
        return int(np.rint(self.network.work[start:end] @ (rows[start:end] * columns - 1)))

    def axis_work(self, start: int, end: int, parts: int, axis: int) -> np.ndarray:
        """For each operation the length that all tiles along an axis compute, as a share of the whole.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        axis = 0 if self.network.is_square else axis
        tiles = self.axis_parts(start, end, parts, axis)
        known = self._work.get((end, parts, axis))
        if known is None or known[0] is not tiles:
            known = self._work[end, parts, axis] = (tiles, self._shares([p.uses for p in tiles], axis))
        return known[1]

    def strip_work(self, start: int, end: int, parts: int) -> np.ndarray:
        """The same of rows in strips, each of which is computed once."""
        uses = self.fronts(start, end, parts).uses
        return self._shares([{t: u for t, u in ((t, us[i]) for t, us in uses.items()) if u} for i in range(parts)], 0)

    def _shares(self, parts: Sequence[Mapping[int, Use]], axis: int) -> np.ndarray:
        found = np.zeros(len(self.network))
        for uses in parts:
            for position, use in uses.items():
                step = self.network.steps[position]
                if step.macs:
                    found[position] += share_of_work(step, use, axis)
        return found

    def axis_parts(self, start: int, end: int, parts: int, axis: int) -> list[AxisPart]:
        """What each tile along an axis needs.

        Raises:
            TileError: an operation cannot make its part by itself.
        """
        axis = 0 if self.network.is_square else axis
        known = self._parts.get((end, parts, axis))
        if known is None or known[0] > start:
            known = self._parts[end, parts, axis] = (start, reach_back(self.network, start, end, parts, axis))
        if any(part.fails >= start for part in known[1]):
            raise TileError(f"the region cannot be divided into {parts}")
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

    def _edge(self, region: Region, extra: int, limit: int) -> Edge:
        """The region with its bytes; over the limit they may be too few, but not under it."""
        key = (region.start, region.end, region.form)
        known = self._edges.get(key)
        if known is None or (known.is_bound and known.peak_bytes <= limit):
            self.tried += known is None
            peak = self.peak(region, limit)
            known = self._edges[key] = Edge(region, extra, peak, self.calls(region), peak > limit)
        return known

    def calls(self, region: Region) -> int:
        """How many operations are called, those that keep and join rows included."""
        inside = [s for s in self.network.steps[region.start : region.end] if s.ready is None]
        calls = region.form.tiles * len(inside)
        if region.form.keeps:
            calls += 2 * (region.form.rows - 1) * sum(isinstance(s.axis_rule(0), (Window, Pool)) for s in inside)
        return calls

    def peak(self, region: Region, limit: int) -> int:
        """Bytes that a region in a form needs: what is held at its start, its results, and the pieces.

        Once they are known to be over the limit, the rest is not counted.
        """
        start, end, form = region.start, region.end, region.form
        held = self.network.held(start, end)
        if self.join != "write":
            joined = max(held + self.network.made(start, end) // form.rows, self.network.joined(start, end))
            return max(joined, self._peak_of_parts(region, held, limit)) if joined <= limit else joined
        return self._peak_of_parts(region, held, limit)

    def _peak_of_parts(self, region: Region, held: int, limit: int) -> int:
        start, end, form = region.start, region.end, region.form
        columns = self.axis_parts(start, end, form.columns, 1)
        if form.keeps:
            fronts = self.fronts(start, end, form.rows)
            return held + strips_peak(self.network, start, end, fronts, columns[0], form.rows, limit - held)
        rows = self.axis_parts(start, end, form.rows, 0)
        return held + tiles_peak(self.network, start, end, rows, columns, limit - held)

    def _peak_outside(self, regions: list[Region]) -> int:
        inside = {t for r in regions for t in range(r.start, r.end)}
        return max((level for t, level in enumerate(self.network.live) if t not in inside), default=0)
