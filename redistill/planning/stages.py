"""Stages: which nodes of a graph must share one grid, and where the graph moves from one grid to another.

How a node scales is not guessed from its type but seen: the graph runs once more on fake tensors at twice the size.
What grows four-fold belongs to a grid, what grows sixteen-fold (attention scores) to its square, what does not grow is
free of it; where the graph fails at the other size (a flatten of fixed length, a position embedding) a grid is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import networkx as nx
import torch
import torch.nn.functional as F
from networkx.utils import UnionFind
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from redistill.memory.recording import GraphRecord, Shape, probe_graph, record_graph
from redistill.tracing import operators
from redistill.tracing.guards import is_guard_only

_MOVERS = {
    "convolution": operators.is_convolution,
    "pool": operators.is_pool,
    "transposed": operators.is_transposed_convolution,
}
GROWTH = 2  # the second run has sides this many times as long


@dataclass(frozen=True)
class Stage:
    """Nodes that share one pooling factor, in data-flow order.

    ``fixed`` says why the factor must be 1, if it must; a ``boundary`` stage is that of the input or a spatial output;
    ``output`` is the last feature map of the stage, ``pre_activation`` the same before its activation.
    """

    index: int
    name: str
    grid: tuple[int, int]
    nodes: tuple[str, ...]
    fixed: str | None = None
    boundary: bool = False
    output: str = ""
    pre_activation: str = ""

    def student_grid(self, factor: int) -> tuple[int, int]:
        """The grid at a pooling factor: sides divided, rounded up as padded convolutions do."""
        return -(-self.grid[0] // factor), -(-self.grid[1] // factor)


@dataclass(frozen=True)
class Transition:
    """An operation that moves from one stage to another; ``stride`` is input side over output side (1/2 upsamples)."""

    node: str
    module: str
    kind: str  # stem, down, up, same or tail
    source: int
    target: int
    stride: Fraction
    operator: str  # convolution, pool, transposed, interpolate, resize

    def student_stride(self, source_factor: int, target_factor: int) -> Fraction:
        """The stride that takes the source's coarser grid to the target's."""
        return self.stride * target_factor / source_factor

    def is_legal(self, source_factor: int, target_factor: int) -> bool:
        """Whether the pass can give the operation that stride, adding an upsampling after a tail if need be."""
        stride = self.student_stride(source_factor, target_factor)
        if self.operator == "resize":
            return True
        if self.operator == "transposed":
            return stride.numerator == 1
        if self.operator == "interpolate" or self.kind == "tail":
            return stride.numerator == 1 or stride.denominator == 1
        return stride.denominator == 1


@dataclass(frozen=True)
class StageGraph:
    """The stages of a network, the transitions between them, and what the analysis needs to scale its record."""

    stages: tuple[Stage, ...]
    transitions: tuple[Transition, ...]
    record: GraphRecord
    grown: GraphRecord = field(repr=False)
    stage_of: dict[str, int] = field(repr=False)

    @property
    def free(self) -> tuple[Stage, ...]:
        """The stages a plan speaks of: all but those of the input and of spatial outputs."""
        return tuple(s for s in self.stages if not s.boundary)

    def as_networkx(self) -> nx.MultiDiGraph[int]:
        """Stages as nodes (attribute ``stage``), transitions as edges (attribute ``transition``)."""
        graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        graph.add_nodes_from((s.index, {"stage": s}) for s in self.stages)
        graph.add_edges_from((t.source, t.target, {"transition": t}) for t in self.transitions)
        return graph


def find_stages(graph_module: GraphModule, inputs: Sequence[Tensor], dtype: str | None = None) -> StageGraph:
    """Partition ``graph_module`` into stages and transitions; the graph is only read."""
    record = record_graph(graph_module, inputs, dtype)
    larger = [torch.empty(_grown_shape(x), dtype=x.dtype) for x in inputs]
    grown, blocked = probe_graph(graph_module, larger, record, dtype)
    return _Partition(graph_module, record, grown, blocked).result()


def _grown_shape(tensor: Tensor) -> tuple[int, ...]:
    shape = Shape(tensor.shape)
    return (*shape[:2], *(GROWTH * side for side in shape[2:])) if is_map(shape) else shape


def is_map(shape: Any) -> bool:
    """Whether ``shape`` is that of a batch of feature maps, (B, C, H, W)."""
    return isinstance(shape, Shape) and len(shape) == 4


class _Partition:
    """One walk over the graph in data-flow order, uniting what shares a grid."""

    def __init__(
        self, graph_module: GraphModule, record: GraphRecord, grown: GraphRecord, blocked: dict[str, str]
    ) -> None:
        self.graph = graph_module.graph
        self.modules = operators.modules_of(graph_module)
        self.record, self.grown, self.blocked = record, grown, blocked
        self.sets: UnionFind[Node] = UnionFind()
        self.labels: dict[Node, Node] = {}
        self.crossings: list[tuple[Node, Node, str, str]] = []  # node, source, kind, operator
        self.fixed: dict[Node, str] = {}
        self.inputs: list[Node] = []
        self.tails = self._find_tails()
        self.outputs: list[Node] = []

    def result(self) -> StageGraph:
        """Walk, then number the sets found."""
        for node in self.graph.nodes:
            if not is_guard_only(node):
                self._visit(node)
        self.sets.union(*self.inputs)
        return self._number()

    def _scales(self, node: Node) -> bool:
        """Whether the value of ``node`` (a tensor's shape, or a size) depends on the size of the input."""
        return bool(self.record.values.get(node.name) != self.grown.values.get(node.name))

    def _is_map(self, node: Node) -> bool:
        return is_map(self.record.values.get(node.name)) and self._scales(node)

    def _visit(self, node: Node) -> None:
        sources = [n for n in node.all_input_nodes if n in self.labels]
        if node.op == "output":
            self.outputs = [n for n in sources if self._is_map(n)]
            for source in self.outputs:
                self.fixed.setdefault(source, "it is an output")
        elif node.name in self.blocked:
            for source in sources:
                self.fixed.setdefault(source, f"{node.name} ({operators.module_path(node)}) needs this very size")
        elif not self._scales(node):
            return
        elif node.op == "placeholder":
            self.labels[node] = node
            self.inputs.append(node)
            self.fixed[node] = "it is the input"
        else:
            self._label(node, sources)

    def _label(self, node: Node, sources: list[Node]) -> None:
        self.labels[node] = node
        self.sets[node]
        operator = self._transition_operator(node)
        if operator is None or not sources:
            self.sets.union(node, *sources)
            return
        source = sources[0]
        self.crossings.append((node, source, self._kind(node, source), operator))
        if operator == "resize":  # the size asked for says whose grid the output shares
            self.sets.union(node, *sources[1:])

    def _transition_operator(self, node: Node) -> str | None:
        """How ``node`` may change the grid; None if its output must keep its input's."""
        if not (self._is_map(node) and node.all_input_nodes and self._is_map(node.all_input_nodes[0])):
            return None
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        source = node.all_input_nodes[0]
        if isinstance(module, nn.Upsample) or node.target is F.interpolate:
            return self._resize_operator(node, module)
        for operator, is_one in _MOVERS.items():
            if is_one(module):
                moves = self._stride(node, source) != 1 or self._is_input(source) or node in self.tails
                return operator if moves else None
        return None

    def _resize_operator(self, node: Node, module: nn.Module | None) -> str | None:
        if isinstance(module, nn.Upsample):
            return "interpolate" if module.scale_factor is not None else None
        size = node.kwargs.get("size", node.args[1] if len(node.args) > 1 else None)
        if size is None:
            return "interpolate"
        return "resize" if any(n in self.labels for n in node.all_input_nodes[1:]) else None

    def _is_input(self, node: Node) -> bool:
        root = self.sets[node]
        return any(self.sets[i] == root for i in self.inputs)

    def _stride(self, node: Node, source: Node) -> Fraction:
        """Input side over output side, from the growth of both: border effects of padding cancel."""
        wide, narrow = (self._side_growth(n) for n in (source, node))
        return Fraction(max(1, round(wide / narrow))) if wide >= narrow else Fraction(1, round(narrow / wide))

    def _side_growth(self, node: Node) -> int:
        small, large = (r.values[node.name] for r in (self.record, self.grown))
        return max(1, *(int(large[axis] - small[axis]) for axis in (2, 3)))

    def _kind(self, node: Node, source: Node) -> str:
        if node in self.tails:
            return "tail"
        if self._is_input(source):
            return "stem"
        stride = self._stride(node, source)
        return "down" if stride > 1 else "up" if stride < 1 else "same"

    def _find_tails(self) -> set[Node]:
        """The last convolution before each spatial output: reached back through elementwise operations only."""
        output = next(n for n in self.graph.nodes if n.op == "output")
        tails = set()
        for node in output.all_input_nodes:
            while self._is_elementwise(node):
                node = node.all_input_nodes[0]
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            if operators.is_convolution(module) and self._is_map(node) and not self._feeds_convolution(node):
                tails.add(node)
        return tails

    def _is_elementwise(self, node: Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return len(node.all_input_nodes) == 1 and operators.is_unary_elementwise(node, module)

    def _feeds_convolution(self, node: Node) -> bool:
        seen, queue = {node}, [node]
        while queue:
            for user in queue.pop().users:
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
                    if operators.is_convolution(self.modules.get(str(user.target))):
                        return True
        return False

    def _number(self) -> StageGraph:
        order: dict[Node, int] = {}
        members: list[list[Node]] = []
        for node in self.labels:
            root = self.sets[node]
            if root not in order:
                order[root] = len(members)
                members.append([])
            members[order[root]].append(node)
        stage_of = {node.name: order[self.sets[node]] for node in self.labels}
        transitions = tuple(
            Transition(
                n.name, operators.module_path(n), kind, stage_of[s.name], stage_of[n.name], self._stride(n, s), op
            )
            for n, s, kind, op in self.crossings
            if stage_of[s.name] != stage_of[n.name] or op == "resize"
        )
        stages = tuple(self._stage(i, nodes, stage_of, transitions) for i, nodes in enumerate(members))
        return StageGraph(stages, transitions, self.record, self.grown, stage_of)

    def _stage(
        self, index: int, nodes: list[Node], stage_of: dict[str, int], transitions: Sequence[Transition]
    ) -> Stage:
        reasons = {stage_of[n.name]: reason for n, reason in self.fixed.items()}
        entering = [t for t in transitions if t.target == index and t.operator != "resize"]
        boundary = any(n in self.inputs for n in nodes) or any(t.kind == "tail" for t in entering)
        paths = [t.module or t.node for t in entering if t.kind != "up"] or [nodes[0].name]
        maps = [n for n in nodes if self._is_map(n)]
        height, width = self.record.values[maps[0].name][2:] if maps else (1, 1)
        before = output = maps[-1] if maps else nodes[-1]
        while self._is_elementwise(before) and before.all_input_nodes[0] in nodes and not self._is_batch_norm(before):
            before = before.all_input_nodes[0]
        return Stage(
            index, common_path(paths) or paths[0], (height, width), tuple(n.name for n in nodes),
            reasons.get(index), boundary, output.name, before.name,
        )  # fmt: skip

    def _is_batch_norm(self, node: Node) -> bool:
        return isinstance(self.modules.get(str(node.target)), _BatchNorm)


def common_path(paths: Sequence[str]) -> str:
    """The longest dotted path that all ``paths`` begin with."""
    split = [path.split(".") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def growth_exponent(small: int, large: int) -> int:
    """How a quantity grows with the area of the grid: 0 not at all, 1 with it, 2 with its square."""
    return round(math.log(large / small, GROWTH**2)) if small and large else 0
