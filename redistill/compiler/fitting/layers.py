"""Layers: which of a student's convolutions and linear layers can be fitted, and what need not be."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from redistill.errors import ModelError
from redistill.internal.text import format_shape
from redistill.tracing.linear_calls import Call, Crop, Listening
from redistill.tracing.operators import is_plain_batch_norm, modules_of


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
        crop: the part of the call's grid that is read, if the rest is cut off at once.
        is_last: whether no other layer comes after it.
        is_restored: whether its output has the teacher's own grid.
    """

    layer: str
    node: Node
    weight: Tensor
    teacher_node: Node
    teacher_weight: Tensor
    norm: Node | None
    crop: Crop | None
    is_last: bool
    is_restored: bool


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
    """Runs a graph and notes the calls each node makes, and which of them make its output."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.calls: list[tuple[Node, Call]] = []
        self.plain: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        calls: list[Call] = []
        with Listening(calls.append):
            output = super().run_node(n)
        self.calls += [(n, call) for call in calls]
        if len(calls) == 1 and isinstance(output, Tensor) and _gives(calls[0], output):
            self.plain.add(n)
        return output

    def calls_by_weight(self) -> dict[str, list[tuple[Node, Call]]]:
        """The calls by the name of their weight; a computed weight goes by the node that uses it."""
        names: dict[int, str] = {}
        for name, parameter in self.module.named_parameters():
            names.setdefault(id(parameter), name)
        found: dict[str, list[tuple[Node, Call]]] = defaultdict(list)
        for node, call in self.calls:
            found[names.get(id(call.weight), f"{node.target} ({node.name})")].append((node, call))
        return found


def find_layers(student: GraphModule, teacher: GraphModule, inputs: tuple[Tensor, ...]) -> Layers:
    """Pair the calls of a student with its teacher's, running both once on ``inputs``.

    Raises:
        ModelError: weights of one name and two shapes: the student was made from another teacher.
    """
    ours, theirs = _listen(student, inputs), _listen(teacher, inputs)
    same = find_unchanged(student, teacher)
    calls, measured = ours.calls_by_weight(), _measured_norms(student)
    last_nodes = _last(student, {node for node, _ in ours.calls})
    sites, unchanged, left = [], [], {}
    for name, found in theirs.calls_by_weight().items():
        layer = name.removesuffix(".weight")
        reason = _obstacle(name, calls.get(name, []), found)
        if reason:
            left[layer] = reason
            continue
        (node, call), (teacher_node, teacher_call) = calls[name][0], found[0]
        _check_shapes(layer, call.weight, teacher_call.weight)
        if node in same:
            unchanged.append(layer)
        else:
            crop = crop_after(node)
            reader = _only_reader(node if crop is None else next(iter(node.users)))
            norm = reader if reader in measured and node in ours.plain else None
            restored = call.grid(crop) == teacher_call.grid() and len(call.weight) == len(teacher_call.weight)
            weights = (call.weight, teacher_node, teacher_call.weight)
            sites.append(Site(layer, node, *weights, norm, crop, node in last_nodes, restored))
    order = {node: index for index, node in enumerate(student.graph.nodes)}
    behind = {site.norm for site in sites}
    norms = tuple(n for n in measured if n not in same and n not in behind)
    return Layers(tuple(sorted(sites, key=lambda s: order[s.node])), norms, tuple(unchanged), left)


def _listen(graph_module: GraphModule, inputs: tuple[Tensor, ...]) -> _Listener:
    listener = _Listener(graph_module)
    listener.run(*(value.clone() for value in inputs))
    return listener


def _gives(call: Call, output: Tensor) -> bool:
    """Whether a node's output is what the call in it gives."""
    found = call.function(**call.arguments)
    return found.shape == output.shape and torch.equal(found, output)


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


def _last(student: GraphModule, nodes: set[Node]) -> set[Node]:
    """Those of ``nodes`` on which no other of them depends."""
    before: set[Node] = set()  # nodes on which one of them depends
    for node in reversed(student.graph.nodes):
        if node in before or node in nodes:
            before.update(node.all_input_nodes)
    return nodes - before


def crop_after(node: Node) -> Crop | None:
    """The slices of the grid that alone are read of a node's output, where a rewritten operation made it too large."""
    reader = _only_reader(node)
    if reader is None or reader.op != "call_function" or reader.target is not getitem:
        return None
    index: Any = reader.args[1]
    is_crop = isinstance(index, tuple) and index[0] is ... and all(isinstance(part, slice) for part in index[1:])
    return index[1:] if is_crop else None


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


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
