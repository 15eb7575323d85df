"""Memory planning for ExecuTorch: its program, our order, sharing and offsets, checked by its verifier and by ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from executorch.exir import memory
from executorch.exir.memory_planning import (
    MemoryAlgoResult,
    MemoryPlanningAlgorithmSuite,
    SpecAllocResult,
    Verifier,
    get_node_tensor_specs,
    greedy,
    naive,
)
from executorch.exir.pass_base import PassResult
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.tensor import TensorSpec
from torch.fx import GraphModule, Node

from redistill.export.source_map import source_of
from redistill.memory.lifetimes import Buffer
from redistill.memory.packing import ArenaLayout, pack, verify

OWN_SUITE = (greedy, partial(greedy, allow_overlapping_allocations=False), naive)
"""All the algorithms that ExecuTorch itself has."""


class ArenaPlanningPass(MemoryPlanningPass):  # type: ignore[misc]
    """Lays results over inputs that die, then places what is left by ``redistill.memory.packing``.

    Within one operation of the network a step always overwrites the step before; the result of a whole operation
    overwrites its input where ``overwriting`` names it (the ``deploy`` convention). What ExecuTorch plans by itself,
    without sharing, is noted in ``own_plans``: by its default, and by the best of all it has.
    """

    def __init__(self, overwriting: Collection[str] = ()) -> None:
        super().__init__(memory_planning_algo=MemoryPlanningAlgorithmSuite())
        self.overwriting = frozenset(overwriting)
        self.own_plans: dict[str, int] = {}

    def run(self, graph_module: GraphModule, graph_signature: Any = None) -> Any:
        """Plan, then verify the plan from scratch."""
        own = [self._plan(graph_module, graph_signature, algorithm) for algorithm in OWN_SUITE]
        self.own_plans = {"greedy": own[0], "suite": min(own)}
        share_storage(graph_module, self.overwriting)
        self._plan(graph_module, graph_signature, place_offsets)
        Verifier(graph_module, True, True, True, graph_signature).verify_storage_reuse()
        verify(planned_layout(graph_module))
        return PassResult(graph_module, True)

    def _plan(self, graph_module: GraphModule, graph_signature: Any, algorithm: Any) -> int:
        """Plan anew by one algorithm; the bytes of the arena."""
        for node in graph_module.graph.nodes:
            if node.target is memory.alloc:
                node.meta.pop("spec", None)
            for spec in get_node_tensor_specs(node):
                _forget_place(spec)
        self.memory_planning_algo = MemoryPlanningAlgorithmSuite([algorithm])
        super().run(graph_module, graph_signature)
        return int(graph_module.meta["non_const_buffer_sizes"][1])


def _forget_place(spec: Any) -> None:
    """As before it was planned, but for the storage that it shares."""
    spec.lifetime = [None, None]
    spec.mem_id = spec.mem_obj_id = spec.mem_offset = None


def share_storage(graph_module: GraphModule, overwriting: Collection[str]) -> None:
    """Give results of elementwise operations the storage of an input that nothing reads later."""
    nodes = list(graph_module.graph.nodes)
    last = _last_uses(nodes)
    ready: dict[Any, int] = dict(last)  # for each storage the last use of all that lies in it
    for step, node in enumerate(nodes):
        result = node.meta.get("spec")
        if not _is_elementwise(node) or not isinstance(result, TensorSpec):
            continue
        for source in node.all_input_nodes:
            within = source_of(source) == source_of(node)
            if not within and source_of(node) not in overwriting:
                continue
            base = _storage(source, result)
            if base is not None and ready.get(root_of(base)) == step:
                result.storage_base = base
                ready[root_of(base)] = last[result]
                break


def root_of(spec: Any) -> Any:
    """The storage that a result lies in, its own or another's."""
    while getattr(spec, "storage_base", None) is not None:
        spec = spec.storage_base
    return spec


def place_offsets(
    alignment: int, specs: Collection[Any], graph_module: GraphModule, graph_signature: Any, extra_padding: int = 0
) -> Any:
    """An ExecuTorch memory planning algorithm: offset packing of the storages, sharers at their storage's offset."""
    for spec in specs:
        spec.realign(alignment)
    roots = [spec for spec in specs if root_of(spec) is spec]
    layout = pack([_buffer(spec) for spec in roots])
    verify(layout)
    start = _reserved(graph_module)
    offsets = {root: start + offset for root, offset in zip(roots, layout.offsets, strict=True)}
    placed = {spec: SpecAllocResult(1, 0, offsets[root_of(spec)]) for spec in specs}
    return MemoryAlgoResult(placed, [0, start + layout.arena_bytes + extra_padding])


def planned_layout(graph_module: GraphModule) -> ArenaLayout:
    """The plan of a lowered program as a layout of ours: the storages, when they are alive and where they lie."""
    specs = dict.fromkeys(s for _, s in results(graph_module) if root_of(s) is s and s.mem_offset is not None)
    sizes = graph_module.meta["non_const_buffer_sizes"]
    return ArenaLayout(tuple(_buffer(s) for s in specs), tuple(s.mem_offset for s in specs), sizes[1])


def results(graph_module: GraphModule) -> Iterator[tuple[Node, Any]]:
    """Each activation of a lowered program with the operation (or placeholder) that makes it."""
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "output") or node.target in (memory.alloc, memory.view):
            continue
        for spec in get_node_tensor_specs(node):
            if isinstance(spec, TensorSpec) and not spec.const:
                yield node, spec


def _last_uses(nodes: list[Node]) -> dict[Any, int]:
    """The last step that makes or reads each result; graph inputs, seen directly or by a view, are left out."""
    last: dict[Any, int] = {}
    for step, node in enumerate(nodes):
        for about in (node, *node.all_input_nodes):
            last.update(dict.fromkeys(get_node_tensor_specs(about), step))
    inputs = {spec for node in nodes if node.op == "placeholder" for spec in get_node_tensor_specs(node)}
    return {spec: step for spec, step in last.items() if spec not in inputs}


def _is_elementwise(node: Node) -> bool:
    """Whether each value of the result depends on the values at its own place only."""
    packet = getattr(node.target, "overloadpacket", None)
    overloads = packet.overloads() if packet is not None else ()
    return any(torch.Tag.pointwise in getattr(packet, name).tags for name in overloads)


def _storage(source: Node, result: Any) -> Any:
    """The activation that ``source`` yields, if ``result`` fits exactly over it."""
    specs = get_node_tensor_specs(source)
    if source.target is memory.alloc or len(specs) != 1:
        return None
    spec = specs[0]
    fits = not spec.const and spec.dtype == result.dtype and spec.nbytes() == result.nbytes()
    return spec if fits else None


def _buffer(spec: Any) -> Buffer:
    kind = str(spec.dtype).removeprefix("torch.")
    born, dies = spec.lifetime
    return Buffer("", "", tuple(spec.shape), kind, spec.allocated_memory, born, dies)


def _reserved(graph_module: GraphModule) -> int:
    """Bytes that control flow inside the graph has taken already."""
    sizes = getattr(graph_module, "input_mem_buffer_sizes", None) or [0, 0]
    return int(sizes[1]) if len(sizes) > 1 else 0
