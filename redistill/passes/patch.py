"""Patch: run regions of a graph piece by piece, as a plan has written into ``node.meta``."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PlanError
from redistill.memory.conventions import DEPLOY, Convention
from redistill.memory.recording import record_graph
from redistill.passes.pieces import RegionLayer
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.patches.programs import Form
from redistill.tracing.deployed import share_tensors
from redistill.tracing.meta import Meta


@dataclass(frozen=True)
class PatchOrder:
    """The region that a node belongs to, and the form it is run in; ``region`` counts from 0."""

    region: int
    form: Form


class PatchPass(PassBase):
    """Replaces the nodes of each region with ``meta["patch"]`` by nodes that run it piece by piece.

    Outputs stay the same. Pieces are written into their place in the region's results (``join="write"``), or
    concatenated (``join="concat"``), which programs without in-place writes need. Convolutions with another padding are
    modules of their own that share the weights. Example inputs are shaped as the placeholders' ``meta["shape"]`` says.
    """

    def __init__(self, join: str = "write") -> None:
        super().__init__()
        self.join = join

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place; it must be free of guards.

        Raises:
            TileError: a region cannot be run in its form.
        """
        orders = {n.name: n.meta.pop(Meta.PATCH) for n in graph_module.graph.nodes if Meta.PATCH in n.meta}
        if not orders:
            return PassResult(graph_module, False)
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        inputs = [torch.empty(n.meta[Meta.SHAPE], dtype=n.meta.get(Meta.DTYPE)) for n in placeholders]
        network = PatchNetwork(graph_module, record_graph(graph_module, inputs), DEPLOY)
        for number in sorted({o.region for o in orders.values()}, reverse=True):  # readers are laid before their makers
            inside = [t for name, t in network.positions.items() if name in orders and orders[name].region == number]
            form = next(o.form for o in orders.values() if o.region == number)
            RegionLayer(graph_module, network, min(inside), max(inside) + 1, number, form, self.join).lay()
        graph_module.graph.lint()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        return PassResult(graph_module, True)


def mark_patches(graph_module: GraphModule, plan: PatchPlan) -> None:
    """Write a plan into ``node.meta``; marks of an earlier plan go.

    Raises:
        PlanError: the graph has no such nodes in that order.
    """
    nodes = list(graph_module.graph.nodes)
    places = {node.name: index for index, node in enumerate(nodes)}
    for node in nodes:
        node.meta.pop(Meta.PATCH, None)
    for number, region in enumerate(plan.regions):
        first, last = places.get(region.first), places.get(region.last)
        if first is None or last is None or last < first:
            raise PlanError(f"the graph has no region from {region.first} to {region.last}")
        for node in nodes[first : last + 1]:
            node.meta[Meta.PATCH] = PatchOrder(number, region.form)


def join_of(convention: Convention) -> str:
    """How parts are put together: written into their place, unless nothing may be overwritten."""
    return "write" if convention.overwrites or convention.as_written else "concat"


def lay_patches(graph_module: GraphModule, join: str = "write") -> GraphModule:
    """The form of a marked graph that is run in parts, over the same modules; the graph itself stays as it is.

    Raises:
        TileError: a region cannot be run in its form.
    """
    form = GraphModule(graph_module, copy.deepcopy(graph_module.graph), f"{type(graph_module).__name__}InParts")
    form.training = graph_module.training
    PatchPass(join)(form)
    share_tensors(form, graph_module)
    return form
