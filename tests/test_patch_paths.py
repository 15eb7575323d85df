"""Paths over cuts: the one that is taken is the best of all, however the search prunes."""

import itertools
import random

import networkx as nx
import pytest

from redistill.planning.patches.paths import Edge, cheapest_path
from redistill.planning.patches.programs import Form, Region


def random_cuts(seed, cuts=6, most_ways=3):
    """A way through as it is, here and there barred, and regions of random work and calls between cuts."""
    draw = random.Random(seed)
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(cuts))
    for a, b in itertools.combinations(range(cuts), 2):
        if b == a + 1 and draw.random() < 0.7:
            graph.add_edge(a, b, edge=None, cost=0)
        for _ in range(draw.randrange(most_ways)):
            cost, calls, keeps = draw.randrange(-1, 6), draw.randrange(1, 8), draw.random() < 0.5
            edge = Edge(Region(a, b, Form(2, 1, keeps=keeps)), cost, 0, calls)
            graph.add_edge(a, b, edge=edge, cost=max(cost, 0))
    return graph


def every_path(graph, at, last):
    if at == last:
        yield ()
    for _, after, data in graph.out_edges(at, data=True):
        for rest in every_path(graph, after, last):
            yield (data, *rest)


def key_of(path, call):
    edges = [data["edge"] for data in path if data["edge"]]
    cost, calls = sum(data["cost"] for data in path), sum(e.calls for e in edges)
    return cost + call * calls, calls, sum(not e.region.form.keeps for e in edges), cost


@pytest.mark.parametrize("call", [0.01, 0.5, 3.0])
def test_the_path_is_the_best_of_all_within_the_extra_work(call):
    compared = 0
    for seed in range(60):
        graph = random_cuts(seed)
        last = len(graph) - 1
        to_go = nx.single_source_dijkstra_path_length(graph.reverse(copy=False), last, weight="cost")
        if 0 not in to_go:
            continue
        for more in (0, 2, 5):
            most = to_go[0] + more
            within = [p for p in every_path(graph, 0, last) if key_of(p, call)[3] <= most]
            found = cheapest_path(graph, list(range(last + 1)), to_go, most, call)
            path = tuple({"edge": edge, "cost": max(edge.extra_macs, 0) if edge else 0} for edge in found)
            assert key_of(path, call) == min(key_of(p, call) for p in within)
            compared += 1
    assert compared > 100
