"""Insert pooling: carry out the strides that a plan has written into ``node.meta``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PlanError
from redistill.internal.silence import quiet_logger
from redistill.internal.text import format_shape
from redistill.memory.recording import ShapeInterpreter, with_fake_weights
from redistill.passes.checks import require_shapes
from redistill.passes.editing import GraphEditor
from redistill.passes.enlarging import repeat, scale_size, shuffle
from redistill.passes.geometry import Fit, UnreachableGridError, refit, stretch, stretched, uncropped, widen
from redistill.passes.orders import Narrow, Order, Resize, Restride
from redistill.passes.reshuffling import Reshuffle
from redistill.passes.slicing import recrop, restep
from redistill.tracing.copying import shallow_copy
from redistill.tracing.meta import Meta
from redistill.tracing.operators import crops_of, name_of, slices_of, yields_features
from redistill.tracing.windows import (
    Sides,
    Window,
    constant_size,
    padding_made,
    read_window,
    shuffle_of,
    sliding_kind,
    with_own_padding,
    write_window,
)


class MisfitError(PlanError):
    """The rewritten graph does not fit together at ``node``."""

    def __init__(self, node: Node, reason: str) -> None:
        called = node.target if isinstance(node.target, str) else name_of(node)
        super().__init__(
            f"the rewritten graph does not fit together at {node.name} ({called}): {reason}; choose pooling factors "
            "that divide its grids, or an input whose sides they divide"
        )
        self.node = node.name


class InsertPoolingPass(PassBase):
    """Gives each node with ``meta["restride"]`` its new stride; paddings are fitted to the grids that really arise.

    The graph runs once on fake tensors, shaped as the placeholders' ``meta["shape"]`` says, and each operation is
    adapted just before it runs. Weights stay as they are. A module that is called at several places is copied (weights
    shared) for the calls that change.
    """

    def requires(self, graph_module: GraphModule) -> None:
        """Check that the inputs' shapes are known."""
        require_shapes(graph_module, "insert pooling")

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place.

        Raises:
            UnreachableGridError: an operation cannot make the grid it was asked for; ``node`` says which one.
            PlanError: the graph no longer fits together.
        """
        if not any(Meta.RESTRIDE in node.meta for node in graph_module.graph.nodes):
            return PassResult(graph_module, False)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), quiet_logger("torch._subclasses.fake_tensor"), mode:
            inputs = [
                torch.empty(n.meta[Meta.SHAPE], dtype=n.meta.get(Meta.DTYPE))
                for n in graph_module.graph.find_nodes(op="placeholder")
            ]
            _Rewriter(graph_module).run(*inputs)
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        return PassResult(graph_module, True)


class _Rewriter(ShapeInterpreter):
    """Rewrites each annotated node when its input's real grid is known, then runs it."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.editor = GraphEditor(graph_module)

    def run_node(self, n: Node) -> Any:
        order = n.meta.pop(Meta.RESTRIDE, None)
        if order is not None:
            self._rewrite(n, order)
        if n.op == "call_method" and n.target == "view" and not self.env[n.all_input_nodes[0]].is_contiguous():
            n.target = "reshape"  # the map is cropped now
        try:
            value = super().run_node(n)
        except Exception as error:
            raise MisfitError(n, str(error).partition("\n")[0]) from error
        if isinstance(value, Tensor):
            n.meta[Meta.SHAPE], n.meta[Meta.DTYPE] = tuple(value.shape), value.dtype
        return value

    def fetch_attr(self, target: str) -> Any:
        return with_fake_weights(super().fetch_attr(target))

    def _rewrite(self, node: Node, order: Order) -> None:
        if isinstance(order, Resize):
            self._resize(node, order)
        elif isinstance(order, Narrow):
            self._narrow(node, order)
        elif sliding_kind(node, self.editor.module(node)) is not None:
            self._reslide(node, order)
        elif slices_of(node) is not None:
            restep(node, order.axes, order.strides)
        elif shuffle_of(node, self.editor.module(node)) is not None:
            self._reshuffle(node, order)
        else:
            self._rescale(node, order)

    def _narrow(self, node: Node, order: Narrow) -> None:
        read = self.env[node.all_input_nodes[0]].shape
        sides = zip(order.axes, order.target, order.loses, strict=True)
        target = [min(side, read[axis] - lost) for axis, side, lost in sides]
        if crops_of(node) is not None:
            recrop(node, order.axes, read, target)
            return
        if not order.crops:
            reach = self._window(node).reach
            target = [uncropped(read[a], reach[a], side) for a, side in zip(order.axes, target, strict=True)]
        self._reslide(node, Restride((Fraction(1),) * len(target), tuple(target), order.axes))

    def _window(self, node: Node) -> Window:
        window = read_window(node, self.editor.module(node), lambda weight: self.env[weight].shape[2:])
        source = node.all_input_nodes[0]
        return replace(window, spare=padding_made(source, self.editor.module(source), len(window.kernel)))

    def _reslide(self, node: Node, order: Restride) -> None:
        """New strides and paddings for a convolution or pool, and what enlarges and crops its output."""
        module = self.editor.module(node)
        own = self._window(node)
        if own.kind == "transposed":
            own = self._stretch(node, own, order)
        dims = len(own.stride)
        strides: list[Fraction] = [Fraction(s) for s in own.stride]
        times = [1] * dims
        target: list[int | None] = [None] * dims
        for axis, stride, side in zip(order.axes, order.strides, order.target, strict=True):
            times[axis] = _enlargement(own, stride)
            strides[axis], target[axis] = stride * times[axis], -(-side // times[axis])
        fit = self._fit(node, own, strides, target)
        features = yields_features(module)
        changed = self._write(node, fit, 1 if features else math.prod(times))
        last = self.editor.crop(changed, fit.crop)
        if math.prod(times) > 1:
            last = self.editor.enlarge(last, node.name, repeat(times) if features else shuffle(times))
            sides = [0] * dims
            for axis, side in zip(order.axes, order.target, strict=True):
                sides[axis] = -side % times[axis]
            self.editor.crop(last, sides)

    def _stretch(self, node: Node, own: Window, order: Restride) -> Window:
        """Let a transposed convolution lay out each of its cells several times, where its kernel would leave gaps."""
        times = [1] * len(own.stride)
        for axis, stride in zip(order.axes, order.strides, strict=True):
            if 1 / stride > max(own.kernel[axis], own.stride[axis]):
                times[axis] = int(1 / stride / own.stride[axis])
        if math.prod(times) == 1:
            return own
        if set(own.dilation) != {1}:
            raise MisfitError(node, "a dilated transposed convolution cannot reach a finer grid")
        module = self.editor.module(node)
        if module is None:
            self._stretch_function(node, times)
        else:
            with unset_fake_temporarily():  # new weights are real ones
                self.editor.set_module(node, stretch(module, times))
        return stretched(own, times)

    def _stretch_function(self, node: Node, times: Sequence[int]) -> None:
        weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
        assert isinstance(weight, Node), "its kernel was read from a node"
        source = weight
        with node.graph.inserting_before(node):
            for axis, count in enumerate(times):
                longer = node.graph.call_function(torch.repeat_interleave, (weight, count, axis + 2))
                self.env[longer] = torch.repeat_interleave(self.env[weight], count, axis + 2)
                weight = longer
        node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda n: weight if n is source else n)

    def _fit(self, node: Node, own: Window, strides: Sequence[Fraction], target: Sequence[int | None]) -> Fit:
        """The fit; a class that pads by itself keeps its own padding if that leads to the grid wanted."""
        source = tuple(self.env[node.all_input_nodes[0]].shape[-len(strides) :])
        called = str(self.editor.module(node) or name_of(node))
        try:
            fit = refit(called, own, strides, source, target)
        except UnreachableGridError as error:
            error.node = node.name
            if not own.pads_itself:
                raise
            fit = Fit(replace(own, stride=tuple(int(s) for s in strides)), (0,) * len(strides))
        if not own.pads_itself:
            return fit
        kept = Fit(with_own_padding(fit.window, own), (0,) * len(strides))
        for candidate in (kept, fit):
            sides = self._sides_of(node, candidate)
            if all(t is None or side - c == t for side, c, t in zip(sides, candidate.crop, target, strict=True)):
                return candidate
        padded = self._fit_beside_own_padding(node, kept.window, target)
        if padded is not None:
            return padded
        raise MisfitError(node, f"its own padding makes a map of {format_shape(self._sides_of(node, kept))}")

    def _fit_beside_own_padding(self, node: Node, window: Window, target: Sequence[int | None]) -> Fit | None:
        """More padding around what a class pads by itself, by sizes it was built for; cropped where it is too much."""
        for extra in range(1, max(window.kernel) // 2 + 1):
            wider = replace(window, padding=tuple(p + extra for p in window.padding))
            sides = self._sides_of(node, Fit(wider, (0,) * len(window.kernel)))
            crop = tuple(0 if t is None else side - t for side, t in zip(sides, target, strict=True))
            if all(0 <= c * stride <= 2 * extra for c, stride in zip(crop, window.stride, strict=True)):
                return Fit(wider, crop)
        return None

    def _sides_of(self, node: Node, fit: Fit) -> Sides:
        """The sides that the node's module makes of its real input with this window."""
        module = write_window(node, self.editor.module(node), fit.window)
        assert module is not None, "a function has no forward of its own"
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return tuple(module(*args, **kwargs).shape[-len(fit.crop) :])

    def _write(self, node: Node, fit: Fit, times: int) -> Node:
        """Put the window into the node; its output gets ``times`` the channels."""
        if fit.is_identity:
            self.editor.leave_out(node)
            return node
        module = write_window(node, self.editor.module(node), fit.window)
        if module is None:
            if times > 1:
                self._widen_function(node, times)
            return node
        with unset_fake_temporarily():  # new weights are real ones
            self.editor.set_module(node, module if times == 1 else widen(module, times))
        return node

    def _widen_function(self, node: Node, times: int) -> None:
        """Let a functional convolution read each of its output channels so many times."""
        kwargs = dict(node.kwargs)
        for name in ("weight", "bias"):
            own = kwargs.get(name)
            if isinstance(own, Node):
                with node.graph.inserting_before(node):
                    copies = node.graph.call_function(torch.repeat_interleave, (own, times, 0))
                self.env[copies] = torch.repeat_interleave(self.env[own], times, 0)
                kwargs[name] = copies
        node.kwargs = kwargs

    def _rescale(self, node: Node, order: Restride) -> None:
        """A new scale for an interpolation, which is left out where nothing is to be enlarged."""
        if set(order.strides) <= {1}:
            self.editor.leave_out(node)
            return
        module = self.editor.module(node)
        own: Any = node.kwargs.get("scale_factor", node.args[2] if len(node.args) > 2 else None)
        own = own if module is None else module.scale_factor
        dims = self.env[node.all_input_nodes[0]].dim() - 2
        scales = [float(s) for s in (own if isinstance(own, tuple | list) else [own] * dims)]
        for axis, stride in zip(order.axes, order.strides, strict=True):
            scales[axis] = float(1 / stride)
        scale: Any = scales[0] if len(set(scales)) == 1 else tuple(scales)
        if module is None:
            node.kwargs = {**node.kwargs, "scale_factor": scale}
            node.args = node.args[:2] if len(node.args) < 3 else (*node.args[:2], scale, *node.args[3:])
        else:
            enlarging: Any = shallow_copy(module)
            enlarging.scale_factor = scale
            self.editor.set_module(node, enlarging)
        self._crop_rounding(node, order, dims, scales)

    def _reshuffle(self, node: Node, order: Restride) -> None:
        """Other sides for a pixel shuffle, its channels as they are."""
        own, down = shuffle_of(node, self.editor.module(node)) or (1, True)
        times = int(max(order.strides[0], 1 / order.strides[0]))
        self.editor.set_module(node, Reshuffle(own, times, down))
        if not down:
            self._crop_rounding(node, order, 2, (float(times), float(times)))

    def _crop_rounding(self, node: Node, order: Restride, dims: int, scales: Sequence[float]) -> None:
        """A coarse side, rounded up, enlarges to a little more than the side it came from."""
        excess = [0] * dims
        for axis, side in zip(order.axes, order.target, strict=True):
            made = math.floor(self.env[node.all_input_nodes[0]].shape[axis] * scales[axis])
            excess[axis] = made - side if 0 < made - side < scales[axis] else 0
        self.editor.crop(node, excess)

    def _resize(self, node: Node, order: Resize) -> None:
        """Scale every size the node is told: whatever it reads beside its first input, or the constant it holds."""
        size = constant_size(node, self.editor.module(node))
        if size is not None:
            over, times = order.ratio.as_integer_ratio()
            self._bring_to(node, scale_size(size, times, over))
            return
        sizes = order.sizes or tuple((n.name, order.ratio, None) for n in node.all_input_nodes[1:])
        told = {name: (ratio, wanted) for name, ratio, wanted in sizes}

        def scaled(size: Node) -> Node:
            if size.name not in told:
                return size
            ratio, wanted = told[size.name]
            over, times = ratio.as_integer_ratio()
            value = scale_size(self.env[size], times, over)
            excess = 0 if wanted is None else value - wanted
            with node.graph.inserting_before(node):
                found = node.graph.call_function(scale_size, (size, times, over, *([excess] if excess else [])))
            self.env[found] = scale_size(self.env[size], times, over, excess)
            return found

        args, kwargs = map_arg((node.args, node.kwargs), scaled)
        node.args, node.kwargs = args, kwargs

    def _bring_to(self, node: Node, size: Sides) -> None:
        module = self.editor.module(node)
        if module is None:
            node.args, node.kwargs = (
                (node.args[0], size, *node.args[2:]),
                {k: v for k, v in node.kwargs.items() if k != "size"},
            )
        else:
            brought: Any = shallow_copy(module)
            brought.size = size
            self.editor.set_module(node, brought)


def _enlargement(own: Window, stride: Fraction) -> int:
    """How many times the output must be enlarged, for the window itself cannot: a finer grid than its own stride's."""
    return stride.denominator if own.kind == "convolution" else 1
