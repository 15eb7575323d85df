"""Streams: a network run over many images in batches, from layer to layer, within a bound on the memory kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from redistill.tracing.linear_calls import Call, catch
from redistill.tracing.operators import module_of


class Stream(Interpreter):
    """A network that is run as far as it is asked to, for all batches, again and again.

    What is alive at a stop is kept for all batches, and the next run goes on from there, if it takes no more than
    ``memory`` bytes; otherwise the next run begins where the last kept stop was (at first, at the images). So beside
    the images there are in memory at most ``memory`` bytes and what one batch needs, however many images there are.

    Args:
        graph_module: the network.
        batches: its inputs, batch by batch; never written to.
        memory: bytes that may be kept between runs.
    """

    def __init__(self, graph_module: GraphModule, batches: Sequence[tuple[Tensor, ...]], memory: int) -> None:
        super().__init__(graph_module)
        self.batches, self.memory = batches, memory
        self.nodes = list(graph_module.graph.nodes)
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self.state = {id(t): t for t in (*graph_module.parameters(), *graph_module.buffers())}
        self.position = 0
        self.kept: list[dict[Node, Any]] = []

    def at(self, stop: Node) -> Iterator[int]:
        """Run each batch up to ``stop``, which is not run, and yield its index while ``env`` holds what is alive."""
        target = self.index[stop]
        if target < self.position:
            self._rewind()
        begin, keeps = self.position, False
        advanced = []
        for index in range(len(self.batches)):
            self.env = self.kept[index] if keeps and begin else self._copy(begin, index)
            self._advance(begin, target)
            if index == 0:
                keeps = self._bytes() * len(self.batches) <= self.memory
            if keeps:
                advanced.append(self.env)
            yield index
        if keeps:
            self.position, self.kept = target, advanced

    def call(self, stop: Node, weight: Tensor) -> Call:
        """The call with this weight inside ``stop``, at the batch that ``at`` has just yielded."""
        env, module = self.env, module_of(stop)
        if module is not None and any(True for _ in module.children()):
            self.env = self._clone(env)  # it may write over its input before the call
        try:
            return catch(weight, lambda: self.run_node(stop))
        finally:
            self.env = env

    def _rewind(self) -> None:
        self.position, self.kept = 0, []

    def _copy(self, begin: int, index: int) -> dict[Node, Any]:
        """What a run begins with: kept values are copied, for the run may write over them."""
        if begin:
            return self._clone(self.kept[index])
        self.args_iter = iter([value.clone() for value in self.batches[index]])
        return {}

    def _clone(self, env: dict[Node, Any]) -> dict[Node, Any]:
        """Copies that share storages as the originals do; the network's own state is not copied."""
        return dict(zip(env, copy.deepcopy(list(env.values()), dict(self.state)), strict=True))

    def _advance(self, begin: int, target: int) -> None:
        for node in self.nodes[begin:target]:
            self.env[node] = self.run_node(node)
            for finished in self.user_to_last_uses.get(node, ()):
                del self.env[finished]

    def _bytes(self) -> int:
        """Bytes of the storages that are alive now."""
        tensors = (t for t in tree_leaves(list(self.env.values())) if isinstance(t, Tensor))
        storages = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if id(t) not in self.state
        }
        return sum(storages.values())
