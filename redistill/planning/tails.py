"""Tails: the last convolutions before outputs that lie on a grid, where a student returns to the teacher's grid.

What follows them is whatever networks end in: activations, softmax, arithmetic, casts, splits, views, a concatenation
of heads, a pixel shuffle, a sum with the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.fx import GraphModule, Node

from redistill.planning.growth import Growth
from redistill.tracing.meta import Meta
from redistill.tracing.operators import slices_of
from redistill.tracing.windows import sliding_kind


def find_tails(graph_module: GraphModule, modules: dict[str, nn.Module], growth: Growth) -> set[Node]:
    """The convolutions from which outputs come by operations that stay on their grid, and that no other convolution
    reads."""
    finder = Finder(modules, growth)
    return {n for n in finder.reach(graph_module.graph.output_node()) if not finder.feeds_convolution(n)}


def find_returned(fixed: Mapping[Node, str], stage_of: Callable[[Node], Node], finder: Finder) -> tuple[str, ...]:
    """The outputs of those stages that nothing but outputs fixes, if convolutions read on from one of them."""
    stages: dict[Node, list[Node]] = {}
    for node in fixed:
        stages.setdefault(stage_of(node), []).append(node)
    return tuple(
        node.name
        for nodes in stages.values()
        if all(fixed[n] == OUTPUT and finder.can_be_enlarged(n) for n in nodes)
        if any(map(finder.feeds_convolution, nodes))
        for node in nodes
    )


class Finder:
    """Looks for convolutions before and behind a node."""

    def __init__(self, modules: dict[str, nn.Module], growth: Growth) -> None:
        self.modules, self.growth = modules, growth

    def reach(self, output: Node) -> set[Node]:
        """Go back from the output as far as the first operation that slides or moves from one grid to another."""
        seen, queue, found = {output}, [output], set()
        while queue:
            for source in queue.pop().all_input_nodes:
                if source in seen or not self.growth.scales(source.name):
                    continue
                seen.add(source)
                if self._is_convolution(source):
                    found.add(source)
                elif self._stays_on_its_grid(source):
                    queue.append(source)
        return found

    def feeds_convolution(self, node: Node) -> bool:
        """Whether another convolution depends on ``node``."""
        seen, queue = {node}, [node]
        while queue:
            for user in queue.pop().users:
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
                    if self._is_convolution(user):
                        return True
        return False

    def can_be_enlarged(self, node: Node) -> bool:
        """Whether it is a batch of maps of numbers, channels before the sides of their grid."""
        axes, dtype = self.growth.axes(node.name), node.meta.get(Meta.DTYPE)
        rank = len(self.growth.record.values[node.name]) if axes else 0
        trailing = axes == tuple(range(-len(axes), 0)) and rank == len(axes) + 2
        return bool(axes) and trailing and dtype is not None and bool(dtype.is_floating_point)

    def _is_convolution(self, node: Node) -> bool:
        """A convolution over a grid; one over a list of positions, as decoders of boxes have it, is none."""
        return self._kind(node) in _CONVOLUTIONS and bool(self.growth.axes(node.name))

    def _stays_on_its_grid(self, node: Node) -> bool:
        kind = self._kind(node)
        flat = kind in _CONVOLUTIONS and not self.growth.axes(node.name)
        return (kind is None or flat) and not self._resizes(node)

    def _module(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _kind(self, node: Node) -> str | None:
        found = sliding_kind(node, self._module(node))
        return found[0] if found else None

    def _resizes(self, node: Node) -> bool:
        return isinstance(self._module(node), nn.Upsample) or slices_of(node) is not None or _name(node) in RESIZES


OUTPUT = "it is an output"
RESIZES = ("interpolate", "upsample")
_CONVOLUTIONS = ("convolution", "transposed")


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", ""))
