"""Partition: which nodes of a graph must share one grid, and where the graph moves from one grid to another.

How a node scales is not guessed from its type but seen: the graph runs once more on fake tensors at twice the size.
What grows four-fold belongs to a grid, what grows sixteen-fold (attention scores) to its square, what does not grow is
free of it; where the graph fails at the other size (a flatten of fixed length, a position embedding) a grid is fixed.
Grids have one, two or three axes, wherever in a tensor's shape they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from networkx.utils import UnionFind
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from redistill.memory.probing import probe_graph
from redistill.memory.recording import GraphRecord, Shape, record_graph
from redistill.planning.growth import Growth, grown_shapes
from redistill.planning.reasons import needs_its_size, place_of
from redistill.planning.stages import Stage, StageGraph, Transition, common_path
from redistill.planning.tails import OUTPUT, Finder, find_returned, find_tails
from redistill.tracing import operators
from redistill.tracing.guards import is_guard_only
from redistill.tracing.meta import Meta
from redistill.tracing.windows import constant_size, shuffle_of, sliding_kind


def find_stages(
    graph_module: GraphModule, inputs: Sequence[Tensor], dtype: str | None = None, record: GraphRecord | None = None
) -> StageGraph:
    """Partition ``graph_module`` into stages and transitions; the graph is only read.

    ``record`` is of this very graph, where it has been recorded already.
    """
    record = record or record_graph(graph_module, inputs, dtype)
    shapes, rank = grown_shapes(graph_module, inputs)
    larger = [torch.empty(shape, dtype=x.dtype, device="meta") for shape, x in zip(shapes, inputs, strict=True)]
    grown, blocked = probe_graph(graph_module, larger, record, dtype)
    return _Partition(graph_module, Growth(record, grown, rank), blocked).result()


class _Partition:
    """One walk over the graph in data-flow order, uniting what shares a grid."""

    def __init__(self, graph_module: GraphModule, growth: Growth, blocked: dict[str, str]) -> None:
        self.graph = graph_module.graph
        self.modules = operators.modules_of(graph_module)
        self.growth, self.record, self.blocked = growth, growth.record, blocked
        self.sets: UnionFind[Node] = UnionFind()
        self.labels: dict[Node, Node] = {}
        self.crossings: list[tuple[Node, Node, str, str, Node | None]] = []  # node, source, kind, operator, size
        self.fixed: dict[Node, str] = {}
        self.inputs: list[Node] = []
        self.shared: list[str] = []
        self.told: list[tuple[Node, Node]] = []  # a node, and a size of another stage that it is told
        self.laid_out: list[tuple[Node, list[Node]]] = []  # a map made of sizes alone, and these
        self.resized: list[Node] = []
        self.joins: list[tuple[Node, Node]] = []  # an image, and where it joins a map
        self.narrowing: list[tuple[Node, Node]] = []  # a window that makes its grid smaller, and what it slides over
        self.raw: set[Node] = set()  # images as they came in: no convolution or pool has seen them
        self.returned: tuple[str, ...] = ()
        self.tails = find_tails(graph_module, self.modules, growth)

    def result(self) -> StageGraph:
        """Walk, then number the sets found."""
        for node in self.graph.nodes:
            if not is_guard_only(node):
                self._visit(node)
        for node in self.graph.nodes:
            self._pin(node)
        self.sets.union(*self.inputs)
        self.returned = find_returned(self.fixed, self.sets.__getitem__, Finder(self.modules, self.growth))
        self._settle_layouts()
        self._share_calls()
        return self._number()

    def _is_map(self, node: Node) -> bool:
        return bool(self.growth.axes(node.name))

    def _module(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _visit(self, node: Node) -> None:
        unread = operators.read_for_type(node)
        sources = [n for n in node.all_input_nodes if n in self.labels and n is not unread]
        if node.op == "output":
            for source in sources:
                self.fixed.setdefault(source, OUTPUT)
        elif node.name in self.blocked:
            for source in sources:
                self.fixed.setdefault(source, needs_its_size(node, self.growth))
            if self.growth.scales(node.name) and sources:
                self._unite(node, sources)
        elif sources and self._picks_places(node, sources[0]):
            self.fixed.setdefault(sources[0], f"{place_of(node)} picks places by number")
            if self.growth.scales(node.name):
                self._unite(node, sources)
        elif not self.growth.scales(node.name):
            return
        elif node.op == "placeholder":
            self.labels[node] = node
            self.inputs.append(node)
            self.raw.add(node)
            self.fixed[node] = "it is the input"
        elif self._is_layout(node, sources):
            self._unite(node, [])
            self.laid_out.append((node, sources))
        else:
            self._label(node, sources)

    def _pin(self, node: Node) -> None:
        """Control flow that read a size as a number leaves it no other."""
        guard = node.meta.get(Meta.GUARD)
        if guard is None or isinstance(guard.value, bool) or not self.growth.scales(node.name):
            return
        while node not in self.labels and node.all_input_nodes:
            node = node.all_input_nodes[0]
        if node in self.labels and self.sets[node] not in {self.sets[n] for n in self.fixed}:
            self.fixed.setdefault(
                node,
                f"control flow at {guard.where} reads its very size as a number; leave sizes as x.shape gives them",
            )

    def _label(self, node: Node, sources: list[Node]) -> None:
        """Give a map its place: united with all it is made of, or beyond a transition from the first of them."""
        # Stages are the sets of a union-find over maps. An operation ties its output to every map it reads: sums and
        # concatenations need no rule of their own, and a UNet's levels fall together through their skips. Only what
        # moves between grids does not tie; it is a crossing, and its two sides may differ. A resize that is told its
        # size by another map is tied to that map. *Raw* is what is still image: what slides over it first is a stem.
        self._unite(node, [])
        if constant_size(node, self._module(node)) is not None:
            self.resized.append(node)
            return
        operator = self._transition_operator(node)
        if self._stays_raw(node, sources):
            self.raw.add(node)
        if operator is None or not sources:
            told = self._sizes_told(node, sources)
            self._note_joins(node, sources)
            if self._narrows(node, sources):
                self.narrowing.append((node, sources[0]))
            self.told += [(node, size) for size in told]
            self.sets.union(node, *(s for s in sources if s not in told))
            return
        source, sizes = sources[0], sources[1:] if operator == "resize" else []
        self.crossings.append((node, source, self._kind(node, source), operator, next(iter(sizes), None)))
        if sizes:
            self.sets.union(*sizes)
            if all(self._is_size_of_a_map(size) for size in sizes):  # it says whose grid the output shares
                self.sets.union(node, *sizes)

    def _narrows(self, node: Node, sources: list[Node]) -> bool:
        """Whether an unpadded window, or a crop, loses cells at the border of the grid that it stays on."""
        found = sliding_kind(node, self._module(node))
        slides = found is not None and bool(sources) and self._slides_over(node, sources[0], found[1])
        if not (slides or (sources and operators.crops_of(node))):
            return False
        before, after = (self.growth.sides(n.name) for n in (sources[0], node))
        return len(before) == len(after) and any(b > a for b, a in zip(before, after, strict=True))

    def _note_joins(self, node: Node, sources: list[Node]) -> None:
        """Note where an image meets a map that is none, but for the sum with what a tail gives back at its size."""
        maps = [s for s in sources if self._is_map(s)]
        images = [s for s in maps if s in self.raw and self.growth.axes(s.name) == self.growth.axes(node.name)]
        others = set(maps) - self.raw
        if others and not any(map(self._is_behind_a_tail, others)):
            self.joins += [(image, node) for image in images]

    def _is_behind_a_tail(self, node: Node) -> bool:
        return any(self.sets[node] == self.sets[tail] for tail in self.tails if tail in self.labels)

    def _unite(self, node: Node, sources: list[Node]) -> None:
        self.labels[node] = node
        self.sets.union(node, *sources)

    def _sizes_told(self, node: Node, sources: list[Node]) -> list[Node]:
        """The sizes of another stage by which a map is laid out anew (``x.view(b, h // 4, w // 4, c)``)."""
        if not sources or sources[0] in self.raw or operators.name_of(node) not in _LAID_OUT:
            return []
        if isinstance(self.record.values[sources[0].name], int):
            return []
        own = self.sets[sources[0]]
        return [s for s in sources[1:] if self.sets[s] != own and isinstance(self.record.values[s.name], int)]

    def _picks_places(self, node: Node, source: Node) -> bool:
        """Whether constants say which cells are picked along a side of the grid."""
        fewer = len(self.growth.axes(node.name)) < len(self.growth.axes(source.name))
        return (fewer or not self.growth.scales(node.name)) and operators.picks_by_constants(node)

    def _is_layout(self, node: Node, sources: list[Node]) -> bool:
        """Whether a tensor is made of sizes alone (``torch.arange(w)``)."""
        whole = isinstance(self.record.values[node.name], Shape)
        return whole and bool(sources) and all(isinstance(self.record.values[s.name], int) for s in sources)

    def _settle_layouts(self) -> None:
        """What is made of sizes alone (anchors) has its sizes' grid, or that of the outputs that it is part of."""
        fixed = {self.sets[n] for n in self.fixed}
        for node, sizes in self.laid_out:
            if self.sets[node] in fixed and not any(self.sets[size] in fixed for size in sizes):
                self.told += [(node, size) for size in sizes]
            else:
                self.sets.union(node, *sizes)

    def _stays_raw(self, node: Node, sources: list[Node]) -> bool:
        module = self._module(node)
        slides = sliding_kind(node, module) is not None and Meta.REDUCES_INPUT not in node.meta
        if slides or isinstance(module, nn.Linear):
            return False
        return bool(sources) and all(s in self.raw for s in sources)

    def _is_size_of_a_map(self, size: Node) -> bool:
        """Whether a size is one of a map's own, unchanged, and the map is not the image."""
        while size.op in ("call_function", "call_method") and operators.name_of(size) in _READS_SIZE:
            size = size.all_input_nodes[0]
        return self._is_map(size) and size not in self.raw

    def _transition_operator(self, node: Node) -> str | None:
        """How ``node`` may change the grid; None if its output must keep its input's."""
        if not (node.all_input_nodes and self._is_map(node)):
            return None
        source, module = node.all_input_nodes[0], self._module(node)
        if len(self.growth.axes(source.name)) != len(self.growth.axes(node.name)):
            return None
        if isinstance(module, nn.Upsample) or operators.name_of(node) in _SIZED:
            return self._resize_operator(node, module)
        strides = self.growth.strides(source.name, node.name)
        slices = operators.slices_of(node)
        if slices is not None:
            interleaved = source in self.raw and any(s.start for s in slices)  # all of the image is to be seen
            return "slice" if any(s != 1 for s in strides) and not interleaved else None
        if shuffle_of(node, module) is not None:
            moves = source not in self.raw and not self._is_behind_a_tail(source)
            return "shuffle" if moves and self.growth.axes(node.name) == (-2, -1) else None
        found = sliding_kind(node, module)
        if found is None or not self._slides_over(node, source, found[1]):
            return None
        moves = any(s != 1 for s in strides) or source in self.raw or node in self.tails
        return found[0] if moves else None

    def _slides_over(self, node: Node, source: Node, dims: int) -> bool:
        """Whether all the sides of the grid are among the trailing axes that an operation slides over."""
        return all(axis >= -dims for n in (node, source) for axis in self.growth.axes(n.name))

    def _resize_operator(self, node: Node, module: nn.Module | None) -> str | None:
        if isinstance(module, nn.Upsample):
            return "interpolate" if module.scale_factor is not None else None
        if any(n in self.labels for n in node.all_input_nodes[1:]):
            return "resize"
        size = node.kwargs.get("size", node.args[1] if len(node.args) > 1 else None)
        return "interpolate" if size is None else None

    def _kind(self, node: Node, source: Node) -> str:
        if node in self.tails or Meta.RETURNS in node.meta:
            return "tail"
        if source in self.raw:
            return "stem"
        stride = max(self.growth.strides(source.name, node.name), key=lambda s: max(s, 1 / s))
        return "down" if stride > 1 else "up" if stride < 1 else "same"

    def _is_elementwise(self, node: Node) -> bool:
        return len(node.all_input_nodes) == 1 and operators.is_unary_elementwise(node, self._module(node))

    def _share_calls(self) -> None:
        """Calls of one module with weights on maps of one size share their factors, unless only one is fixed."""
        calls: dict[tuple[str, object], list[Node]] = {}
        for node in self.labels:
            module = self._module(node)
            if module is not None and next(module.parameters(), None) is not None:
                calls.setdefault((str(node.target), self.record.values[node.name]), []).append(node)
        fixed = {self.sets[n] for n in self.fixed}
        for nodes in calls.values():
            roots = {self.sets[n] for n in nodes}
            if len(roots) > 1 and len({root in fixed for root in roots}) == 1:
                self.sets.union(*nodes)
                self.shared.append(str(nodes[0].target))

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
                n.name, operators.module_path(n), kind, stage_of[s.name], stage_of[n.name],
                self.growth.strides(s.name, n.name), op, self.growth.axes(n.name),
                None if size is None else stage_of[size.name], operators.yields_features(self._module(n)),
            )
            for n, s, kind, op, size in self.crossings
            if stage_of[s.name] != stage_of[n.name] or op == "resize"
        )  # fmt: skip
        stages = tuple(self._stage(i, nodes, stage_of, transitions) for i, nodes in enumerate(members))
        told = tuple((node.name, size.name) for node, size in self.told)
        resized = tuple(node.name for node in self.resized)
        joins: dict[tuple[str, Node], tuple[str, ...]] = {}
        for image, node in self.joins:
            key = image.name, self.sets[node]
            joins[key] = (*joins.get(key, ()), node.name)
        joined = tuple((image, users) for (image, _), users in joins.items())
        narrowing = tuple((node.name, source.name) for node, source in self.narrowing)
        return StageGraph(
            stages,
            transitions,
            self.record,
            self.growth,
            stage_of,
            tuple(self.shared),
            told,
            resized,
            joined,
            self.returned,
            narrowing,
        )

    def _stage(
        self, index: int, nodes: list[Node], stage_of: dict[str, int], transitions: Sequence[Transition]
    ) -> Stage:
        reasons: dict[int, dict[str, None]] = {}
        for node, reason in self.fixed.items():
            reasons.setdefault(stage_of[node.name], {})[reason] = None
        entering = [t for t in transitions if t.target == index]
        resized = [t for t in entering if t.operator == "resize"]
        entering = [t for t in entering if t.operator != "resize"]
        boundary = any(n in self.inputs for n in nodes) or any(t.kind == "tail" for t in entering)
        boundary |= index in reasons and any(t.size_stage == 0 for t in resized)
        paths = [t.module or t.node for t in entering if t.kind != "up"] or [nodes[0].name]
        maps = [n for n in nodes if self._is_map(n)]
        grid = max((self.growth.sides(n.name) for n in maps[:1]), default=(1, 1))
        before = output = maps[-1] if maps else nodes[-1]
        while self._is_elementwise(before) and before.all_input_nodes[0] in nodes and not self._is_batch_norm(before):
            before = before.all_input_nodes[0]
        return Stage(
            index, common_path(paths) or paths[0], grid, tuple(n.name for n in nodes),
            " and ".join(list(reasons.get(index, ()))[:2]) or None, boundary, output.name, before.name,
        )  # fmt: skip

    def _is_batch_norm(self, node: Node) -> bool:
        return isinstance(self.modules.get(str(node.target)), _BatchNorm)


_LAID_OUT = ("view", "reshape", "unflatten", "expand", "rearrange")
_READS_SIZE = ("getattr", "getitem", "size")
_SIZED = ("interpolate", "upsample", *(f"adaptive_{k}_pool{n}d" for k in ("avg", "max") for n in (1, 2, 3)))
