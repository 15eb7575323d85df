"""Segmenting: the cheapest way to run a network under a byte limit, as a shortest path over its cuts.

A cut lies between two operations. An edge from cut to cut is either a stretch that fits as it is (no extra work), or a
region in a form whose bytes fit; its length is the multiply-accumulates that the form computes more than the whole.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter

import networkx as nx
import numpy as np

from redistill.internal.caching import cached_method
from redistill.planning.patches.axes import Pool, TileError, Window
from redistill.planning.patches.counting import strip_bound, strips_peak, tile_bound, tiles_peak
from redistill.planning.patches.gates import Stretch, find_stretches
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.paths import Edge, cheapest_path
from redistill.planning.patches.programs import AxisPart, Form, Region
from redistill.planning.patches.reaches import Reaches


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
CALL = 1e-4
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
        self.reaches = Reaches(network)
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
        *sweeps, main = self.stretches(start, end)
        held, network, reaches = self.network.held(start, end), self.network, self.reaches
        try:
            if form.keeps:
                fronts, columns = reaches.fronts(start, end, form.rows), reaches.middle(main, 1, 1)
                return held + strip_bound(network, start, end, fronts, columns, form.rows // 2)
            bounds = [(network.crossing[start], sweep) for sweep in sweeps] + [(held, main)]
            return max(
                before + tile_bound(network, s, reaches.middle(s, form.rows, 0), reaches.middle(s, form.columns, 1))
                for before, s in bounds
            )
        except TileError:
            return math.inf

    @cached_method
    def stretches(self, start: int, end: int) -> tuple[Stretch, ...]:
        """The sweeps in which a region is run."""
        return find_stretches(self.network, start, end)

    def forms(self, start: int, end: int) -> Iterator[Form]:
        """The forms that a region's results can be divided into."""
        results = [self.network.steps[t].sides for t in self.network.results(start, end)]
        height, width = (min(side[axis] for side in results) for axis in (0, 1))
        for rows in self.lattice.strips if len(self.stretches(start, end)) == 1 else ():
            if rows <= height:
                yield Form(rows, 1, keeps=True)
        for rows in self.lattice.parts:
            for columns in self.lattice.parts:
                if 1 < rows * columns <= self.lattice.most and rows <= height and columns <= width and rows >= columns:
                    yield Form(rows, columns)

    def extra_macs(self, start: int, end: int, form: Form) -> int | None:
        """Multiply-accumulates that the form computes more than the region as it is; None if it cannot be run so."""
        *sweeps, main = self.stretches(start, end)
        try:
            shares = self._shares(main, form)
            again = [self._shares(sweep, form) for sweep in sweeps]
        except TileError:
            return None
        shares[list(self._aside(main))] = 1
        work = self.network.work
        more = work[start:end] @ (shares[start:end] - 1) + sum(work[start:end] @ share[start:end] for share in again)
        return int(np.rint(more))

    def _shares(self, stretch: Stretch, form: Form) -> np.ndarray:
        if form.keeps:
            rows = self.reaches.strip_work(stretch.start, stretch.end, form.rows)
        else:
            rows = self.reaches.tile_work(stretch, form.rows, 0)
        shares: np.ndarray = rows * self.reaches.tile_work(stretch, form.columns, 1)
        return shares

    def _aside(self, stretch: Stretch) -> frozenset[int]:
        return self.network.aside(stretch.mean) if stretch.mean >= 0 else frozenset()

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
        *sweeps, main = self.stretches(region.start, region.end)
        aside = self._aside(main)
        steps = self.network.steps[region.start : region.end]
        inside = [
            s
            for s in steps
            if s.ready is None and s.position not in aside and not self.network.is_folded(s, region.start)
        ]
        calls = region.form.tiles * (len(inside) + sum(s.end - s.start for s in sweeps))
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
        *sweeps, main = self.stretches(start, end)
        if form.keeps:
            fronts, (columns,) = self.reaches.fronts(start, end, form.rows), self.reaches.tiles(main, 1, 1)
            return held + strips_peak(self.network, start, end, fronts, columns, form.rows, limit - held)
        most = 0
        for sweep in sweeps:
            before = self.network.crossing[start]
            most = before + tiles_peak(self.network, sweep, *self._tiles(sweep, form), limit - before, main.mean)
        if most > limit:
            return most
        held += self._gate_bytes(main)
        return max(most, held + tiles_peak(self.network, main, *self._tiles(main, form), limit - held))

    def _tiles(self, stretch: Stretch, form: Form) -> tuple[list[AxisPart], list[AxisPart]]:
        return self.reaches.tiles(stretch, form.rows, 0), self.reaches.tiles(stretch, form.columns, 1)

    def _gate_bytes(self, stretch: Stretch) -> int:
        """Bytes of what was computed of the mean that the pieces read."""
        aside, steps = self._aside(stretch), self.network.steps[stretch.start : stretch.end]
        read = {operand.position for step in steps if step.position not in aside for operand in step.operands}
        return sum(self.network.value_bytes(position) for position in read & aside)

    def _peak_outside(self, regions: list[Region]) -> int:
        inside = {t for r in regions for t in range(r.start, r.end)}
        return max((level for t, level in enumerate(self.network.live) if t not in inside), default=0)
