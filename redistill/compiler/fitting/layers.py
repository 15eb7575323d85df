"""Layers: which of a student's convolutions and linear layers can be fitted, and what need not be."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from redistill.errors import ModelError
from redistill.internal.text import format_shape
from redistill.tracing.linear_calls import Call, Listening
from redistill.tracing.operators import is_foldable_batch_norm, is_plain_batch_norm, modules_of


@dataclass(frozen=True)
class Site:
    """A call of a student's with a weight of its own, and the same in its teacher.

    Attributes:
        layer: the path of the module whose weight it is; the weight's own, if it has another name.
        node: where the student's graph makes the call.
        weight: the student's weight.
        teacher_node: where the teacher's graph makes it.
        teacher_weight: the teacher's weight.
        norm: the student's batch norm that alone reads the output, if there is one.
    """

    layer: str
    node: Node
    weight: Tensor
    teacher_node: Node
    teacher_weight: Tensor
    norm: Node | None


@dataclass(frozen=True)
class Layers:
    """What is to be done on a student.

    Attributes:
        sites: the layers to fit, in the student's order.
        norms: batch norms that measure their statistics anew, those behind a site excluded.
        unchanged: layers that see and give what the teacher's do.
        left: layers that cannot be fitted, and why.
    """

    sites: tuple[Site, ...]
    norms: tuple[Node, ...]
    unchanged: tuple[str, ...]
    left: dict[str, str]


class _Listener(Interpreter):
    """Runs a graph and notes the calls each node makes."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.calls: list[tuple[Node, Call]] = []

    def run_node(self, n: Node) -> Any:
        with Listening(lambda call: self.calls.append((n, call))):
            return super().run_node(n)


def find_layers(student: GraphModule, teacher: GraphModule, inputs: tuple[Tensor, ...]) -> Layers:
    """Pair the calls of a student with its teacher's, running both once on ``inputs``.

    Raises:
        ModelError: weights of one name and two shapes: the student was made from another teacher.
    """
    ours, theirs = _calls_by_weight(student, inputs), _calls_by_weight(teacher, inputs)
    same = find_unchanged(student, teacher)
    norm_after = _norms_after(student)
    sites, unchanged, left = [], [], {}
    for name, found in theirs.items():
        layer = name.removesuffix(".weight")
        reason = _obstacle(name, ours.get(name, []), found)
        if reason:
            left[layer] = reason
            continue
        (node, call), (teacher_node, teacher_call) = ours[name][0], found[0]
        _check_shapes(layer, call.weight, teacher_call.weight)
        if node in same:
            unchanged.append(layer)
        else:
            norm = norm_after.get(node)
            sites.append(Site(layer, node, call.weight, teacher_node, teacher_call.weight, norm))
    order = {node: index for index, node in enumerate(student.graph.nodes)}
    behind = {site.norm for site in sites}
    norms = tuple(n for n in _measured_norms(student) if n not in same and n not in behind)
    return Layers(tuple(sorted(sites, key=lambda s: order[s.node])), norms, tuple(unchanged), left)


def _calls_by_weight(graph_module: GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, list[tuple[Node, Call]]]:
    """The calls of a network by the name of their weight; a computed weight goes by the node that uses it."""
    listener = _Listener(graph_module)
    listener.run(*(value.clone() for value in inputs))
    names: dict[int, str] = {}
    for name, parameter in graph_module.named_parameters():
        names.setdefault(id(parameter), name)
    found: dict[str, list[tuple[Node, Call]]] = defaultdict(list)
    for node, call in listener.calls:
        found[names.get(id(call.weight), f"{node.target} ({node.name})")].append((node, call))
    return found


def _obstacle(name: str, ours: list[tuple[Node, Call]], theirs: list[tuple[Node, Call]]) -> str | None:
    calls = [call for _, call in (*ours, *theirs)]
    if not isinstance(calls[0].weight, nn.Parameter):
        return "its weight is computed"
    if not ours:
        return "the student does not use its weight"
    if len(ours) > 1 or len(theirs) > 1:
        return "its weight is used at several places"
    return "it is a transposed convolution" if calls[0].is_transposed else None


def _check_shapes(layer: str, ours: Tensor, theirs: Tensor) -> None:
    """A student's layer may give a pixel-shuffled multiple of the channels."""
    if ours.shape[1:] != theirs.shape[1:] or ours.shape[0] % theirs.shape[0]:
        raise ModelError(
            f"{layer} is {format_shape(tuple(ours.shape))} in the student and {format_shape(tuple(theirs.shape))} "
            "in the teacher; fit a student to the teacher it was made from"
        )


def _norms_after(student: GraphModule) -> dict[Node, Node]:
    modules = modules_of(student)
    return {n.all_input_nodes[0]: n for n in student.graph.nodes if is_foldable_batch_norm(n, modules)}


def _measured_norms(student: GraphModule) -> list[Node]:
    """Batch norms with statistics, called once."""
    modules = modules_of(student)
    calls: dict[int, list[Node]] = defaultdict(list)
    for node in student.graph.find_nodes(op="call_module"):
        calls[id(modules[str(node.target)])].append(node)
    once = [nodes[0] for nodes in calls.values() if len(nodes) == 1]
    measured = [n for n in once if is_plain_batch_norm(modules[str(n.target)])]
    return [n for n in measured if modules[str(n.target)].running_mean is not None]


def find_unchanged(student: GraphModule, teacher: GraphModule) -> set[Node]:
    """The student's nodes that compute just what the teacher's nodes of the same name do, from the inputs on."""
    twins = {node.name: node for node in teacher.graph.nodes}
    ours, theirs = modules_of(student), modules_of(teacher)
    same: set[Node] = set()
    for node in student.graph.nodes:
        twin = twins.get(node.name)
        if twin is not None and same.issuperset(node.all_input_nodes) and _is_alike(node, twin, ours, theirs):
            same.add(node)
    return same


def _is_alike(node: Node, twin: Node, ours: dict[str, nn.Module], theirs: dict[str, nn.Module]) -> bool:
    if (node.op, str(node.target), str(node.args), str(node.kwargs)) != (
        twin.op, str(twin.target), str(twin.args), str(twin.kwargs),
    ):  # fmt: skip
        return False
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        a, b = getattr(ours[path], name), getattr(theirs[path], name)
        return isinstance(a, Tensor) and torch.equal(a, b)
    if node.op != "call_module":
        return True
    one, other = ours[str(node.target)], theirs[str(node.target)]
    return repr(one) == repr(other) and _equal_states(one.state_dict(), other.state_dict())


def _equal_states(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
