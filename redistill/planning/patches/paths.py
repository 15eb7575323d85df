"""Paths: of the ways over the cuts that cost nearly the least, the one of fewest calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx

from redistill.planning.patches.programs import Region

ROUNDING = 1e-9


@dataclass(frozen=True)
class Edge:
    """A region in a form: its cost, the operations called, and bytes; where those are a bound, it needs no fewer."""

    region: Region
    extra_macs: int
    peak_bytes: int
    calls: int
    is_bound: bool = False


class _Label(NamedTuple):
    """A way to a cut: the operations called, the regions that are no strips, the extra work, and how it came there."""

    calls: int
    squares: int
    cost: int
    before: _Label | None = None
    edge: Edge | None = None


def cheapest_path(
    graph: nx.MultiDiGraph[int], cuts: list[int], to_go: dict[int, float], most: int, call: float
) -> list[Edge | None]:
    """Among the paths of at most ``most`` extra work the cheapest, calls weighed, strips first.

    ``to_go`` is the least extra work from each cut to the last. A way is given up where another to the same cut costs
    no more and calls no more, and where even the cheapest way on would be dearer than a path that is known.
    """
    weighed = _weighed_to_go(graph, cuts, call)
    enough = _known_path(graph, cuts, to_go, weighed, most, call) * (1 + ROUNDING)
    labels: dict[int, list[_Label]] = {cuts[0]: [_Label(0, 0, 0)]}
    for cut in cuts[:-1]:
        edges = [(after, data["cost"], data["edge"]) for _, after, data in graph.out_edges(cut, data=True)]
        edges = [each for each in edges if each[0] in to_go]
        for label in labels.get(cut, ()):
            for after, extra, edge in edges:
                cost, calls = label.cost + extra, label.calls + (edge.calls if edge else 0)
                if cost + to_go[after] > most or cost + call * calls + weighed[after] > enough:
                    continue
                squares = label.squares + int(edge is not None and not edge.region.form.keeps)
                _add_label(labels.setdefault(after, []), _Label(calls, squares, cost, label, edge))
    return _path(min(labels[cuts[-1]], key=lambda label: (label.cost + call * label.calls, *label[:3])))


def _weighed_to_go(graph: nx.MultiDiGraph[int], cuts: list[int], call: float) -> dict[int, float]:
    """From each cut to the last, the least extra work with ``call`` added for each operation called."""
    best = {cuts[-1]: 0.0}
    for cut in reversed(cuts[:-1]):
        ways = [
            data["cost"] + call * (data["edge"].calls if data["edge"] else 0) + best[after]
            for _, after, data in graph.out_edges(cut, data=True)
            if after in best
        ]
        if ways:
            best[cut] = min(ways)
    return best


def _known_path(
    graph: nx.MultiDiGraph[int],
    cuts: list[int],
    to_go: dict[int, float],
    weighed: dict[int, float],
    most: int,
    call: float,
) -> float:
    """What some path within ``most`` costs, calls weighed: at each cut the best way on that leaves one to the end."""
    cut, cost, calls = cuts[0], 0, 0
    while cut != cuts[-1]:
        ways = [
            (data["cost"] + call * more + weighed[after], data["cost"], more, after)
            for _, after, data in graph.out_edges(cut, data=True)
            if after in to_go and cost + data["cost"] + to_go[after] <= most
            for more in (data["edge"].calls if data["edge"] else 0,)
        ]
        _, extra, more, cut = min(ways)
        cost, calls = cost + extra, calls + more
    return cost + call * calls


def _add_label(labels: list[_Label], new: _Label) -> None:
    """Keep what no other label beats in calls and cost at once; where both are equal, the fewest squares."""
    calls, squares, cost = new[:3]
    for old in labels:
        if old.calls <= calls and old.cost <= cost and (old.squares <= squares or old.calls < calls or old.cost < cost):
            return
    labels[:] = [old for old in labels if old.calls < calls or old.cost < cost]
    labels.append(new)


def _path(label: _Label) -> list[Edge | None]:
    edges = []
    while label.before is not None:
        edges.append(label.edge)
        label = label.before
    return edges[::-1]
