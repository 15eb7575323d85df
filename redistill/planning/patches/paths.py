"""Paths: of the ways over the cuts that cost nearly the least, the one of fewest calls."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from redistill.planning.patches.programs import Region


@dataclass(frozen=True)
class Edge:
    """A region in a form: its cost, the operations called, and bytes; where those are a bound, it needs no fewer."""

    region: Region
    extra_macs: int
    peak_bytes: int
    calls: int
    is_bound: bool = False


def cheapest_path(
    graph: nx.MultiDiGraph[int], cuts: list[int], to_go: dict[int, float], most: int, call: float
) -> list[Edge | None]:
    """Among the paths of at most ``most`` extra work the cheapest, calls weighed, strips first."""
    labels: dict[int, list[tuple[int, int, int, list[Edge | None]]]] = {cuts[0]: [(0, 0, 0, [])]}
    for cut in cuts[:-1]:
        for calls, squares, cost, path in labels.get(cut, ()):
            for _, after, data in graph.out_edges(cut, data=True):
                reached = cost + data["cost"]
                if after not in to_go or reached + to_go[after] > most:
                    continue
                edge = data["edge"]
                more, square = (edge.calls, int(not edge.region.form.keeps)) if edge else (0, 0)
                _add_label(labels.setdefault(after, []), (calls + more, squares + square, reached, [*path, edge]))
    return min(labels[cuts[-1]], key=lambda label: (label[2] + call * label[0], *label[:3]))[3]


def _add_label(
    labels: list[tuple[int, int, int, list[Edge | None]]], new: tuple[int, int, int, list[Edge | None]]
) -> None:
    """Keep what no other label beats in calls, squares and cost at once."""
    if any(all(a <= b for a, b in zip(old[:3], new[:3], strict=True)) for old in labels):
        return
    labels[:] = [old for old in labels if not all(a >= b for a, b in zip(old[:3], new[:3], strict=True))]
    labels.append(new)
