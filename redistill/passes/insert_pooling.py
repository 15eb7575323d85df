"""Insert pooling: carry out the strides that a plan has written into ``node.meta``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from operator import getitem
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PlanError
from redistill.memory.recording import ShapeInterpreter
from redistill.passes.geometry import Pair, UnreachableGridError, refit, widen
from redistill.tracing.operators import name_of

RESTRIDE = "restride"


@dataclass(frozen=True)
class Restride:
    """What a plan asks of an operation: the stride (input side over output side) and the grid of its output.

    With ``enlarge`` a convolution runs at stride 1 and its output is enlarged so many times: the tail of a denoiser or
    segmenter, which must return to the teacher's grid. It gets ``enlarge ** 2`` times its channels, which a pixel
    shuffle lays out in space (Shi et al. 2016, arXiv 1609.05158): no more memory than the output needs, and unlike
    plain upsampling able to fill in detail. At first the copies of a channel are equal, which is nearest upsampling.
    """

    stride: Fraction
    target: Pair
    enlarge: int = 1


class InsertPoolingPass(PassBase):
    """Gives each node with ``meta["restride"]`` its new stride; paddings are fitted to the grids that really arise.

    The graph runs once on fake tensors, shaped as the placeholders' ``meta["shape"]`` says, and each operation is
    adapted just before it runs. Weights stay as they are. A module that is called at several places is copied (weights
    shared) for the calls that change.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place.

        Raises:
            UnreachableGridError: an operation cannot make the grid it was asked for; ``node`` says which one.
            PlanError: the graph no longer fits together.
        """
        if not any(RESTRIDE in node.meta for node in graph_module.graph.nodes):
            return PassResult(graph_module, False)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), _quiet(), mode:
            inputs = [
                torch.empty(n.meta["shape"], dtype=n.meta.get("dtype"))
                for n in graph_module.graph.find_nodes(op="placeholder")
            ]
            _Rewriter(graph_module).run(*inputs)
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        return PassResult(graph_module, True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log what fails, which our own errors say in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Rewriter(ShapeInterpreter):
    """Rewrites each annotated node when its input's real grid is known, then runs it."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.graph_module = graph_module
        self.calls: dict[str, int] = {}
        for node in graph_module.graph.find_nodes(op="call_module"):
            self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1

    def run_node(self, n: Node) -> Any:
        order = n.meta.pop(RESTRIDE, None)
        if order is not None:
            self._rewrite(n, order)
        try:
            return super().run_node(n)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            called = n.target if isinstance(n.target, str) else name_of(n)
            raise PlanError(
                f"the rewritten graph does not fit together at {n.name} ({called}): {reason}; choose pooling factors "
                "that divide its grids, or an input whose sides they divide"
            ) from error

    def _rewrite(self, node: Node, order: Restride) -> None:
        if node.op == "call_function" or isinstance(self._module(node), nn.Upsample):
            self._rescale(node, order)
            return
        source = tuple(self.env[node.all_input_nodes[0]].shape[-2:])
        small = (-(-order.target[0] // order.enlarge), -(-order.target[1] // order.enlarge))
        try:
            fit = refit(self._module(node), order.stride, source, small)
        except UnreachableGridError as error:
            error.node = node.name
            raise
        with unset_fake_temporarily():  # new weights are real ones
            module = fit.module if order.enlarge == 1 else widen(fit.module, order.enlarge**2)
        self._set_module(node, module)
        last = node
        if any(fit.crop):
            index: Any = (..., *(slice(None, -c or None) for c in fit.crop))
            last = self._append(last, lambda graph: graph.call_function(getitem, (node, index)))
        if order.enlarge > 1:
            path = self._free_path(f"{node.name}_upsampling")
            self.graph_module.add_submodule(path, nn.PixelShuffle(order.enlarge))
            self._append(last, lambda graph: graph.call_module(path, (last,)))

    def _module(self, node: Node) -> nn.Module:
        return self.graph_module.get_submodule(str(node.target))

    def _set_module(self, node: Node, module: nn.Module) -> None:
        """Put ``module`` in place of the node's; beside it, if other nodes call the old one."""
        path = str(node.target)
        if self.calls.get(path, 0) > 1:
            self.calls[path] -= 1
            path = self._free_path(f"{path}_at_{node.name}")
            node.target = path
        self.graph_module.set_submodule(path, module)

    def _free_path(self, path: str) -> str:
        while path in dict(self.graph_module.named_modules()):
            path += "_"
        return path

    def _rescale(self, node: Node, order: Restride) -> None:
        """A new scale for an interpolation, which is left out where nothing is to be enlarged."""
        if order.stride == 1:
            node.replace_all_uses_with(node.all_input_nodes[0])
            return
        scale = float(1 / order.stride)
        if node.op == "call_function":
            node.kwargs = {**node.kwargs, "scale_factor": scale}
            node.args = node.args[:2] if len(node.args) < 3 else (*node.args[:2], scale, *node.args[3:])
        else:
            enlarging = copy.copy(self._module(node))
            enlarging.scale_factor = scale  # type: ignore[assignment]
            self._set_module(node, enlarging)

    def _append(self, node: Node, create: Callable[[Graph], Node]) -> Node:
        """Insert a node after ``node`` that takes over its users."""
        with node.graph.inserting_after(node):
            successor = create(node.graph)
        successor.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
        node.replace_all_uses_with(successor, delete_user_cb=lambda user: user is not successor)
        return successor
