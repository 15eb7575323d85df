"""Outputs: a graph that also shows what stands at some of its nodes."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import nn
from torch.fx import Graph, GraphModule, Node

from redistill.errors import TapError
from redistill.tracing.operators import IN_PLACE_FUNCTIONS, module_of


def with_outputs(graph_module: GraphModule, places: Mapping[str, str], output: bool = True) -> GraphModule:
    """A module over the same weights whose forward yields ``(output, {name: value of the node})``.

    A node that a later in-place operation overwrites is returned as a copy of what it was.

    Raises:
        TapError: a node that the graph does not have.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    result = graph.graph_copy(graph_module.graph, copies)
    by_name = {old.name: new for old, new in copies.items()}
    missing = [node for node in places.values() if node not in by_name]
    if missing:
        raise TapError(f"{type(graph_module).__name__} has no graph node {', '.join(missing)}")
    overwritten = {old.name for old in copies if any(writes_over(user, old) for user in old.users)}
    extra = {name: _copied(by_name[node]) if node in overwritten else by_name[node] for name, node in places.items()}
    graph.output((result if output else None, extra))
    graph.eliminate_dead_code(is_impure_node=_must_stay)
    module = GraphModule(graph_module, graph, f"{type(graph_module).__name__}WithTaps")
    module.training = graph_module.training
    return module


def lay_behind(graph_module: GraphModule, place: str, name: str, module: nn.Module) -> str:
    """Let all that reads a node read a module's output of it instead; returns the new node's name."""
    node = next(node for node in graph_module.graph.nodes if node.name == place)
    graph_module.add_submodule(name, module)
    with graph_module.graph.inserting_after(node):
        laid = graph_module.graph.call_module(name, (node,))
    node.replace_all_uses_with(laid, delete_user_cb=lambda user: user is not laid)
    graph_module.recompile()
    return str(laid.name)


def _copied(node: Node) -> Node:
    """A copy of the node's value, taken at once."""
    with node.graph.inserting_after(node):
        return node.graph.call_method("clone", (node,))


def writes_over(user: Node, node: Node) -> bool:
    """Whether ``user`` leaves its result in place of the value of ``node``."""
    if user.op == "call_module":
        return bool(getattr(module_of(user), "inplace", False))
    in_place = user.kwargs.get("inplace", False) or (
        (user.op == "call_method" and str(user.target).endswith("_")) or user.target in IN_PLACE_FUNCTIONS
    )
    return bool(in_place) and bool(user.args) and user.args[0] is node


def _must_stay(node: Node) -> bool:
    return node.op in ("placeholder", "output") or node.target is operator.setitem
