"""Calls: the nodes that run an operation of a region on a part of its inputs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from redistill.passes.folded import FoldedWeights
from redistill.planning.patches.network import PatchNetwork, Step
from redistill.planning.patches.programs import Run
from redistill.planning.patches.rules import expand_index, pad_arguments, pads_itself
from redistill.tracing import operators

TILE = "tile"  # key in node.meta: which piece of which region a laid node belongs to

ACTIVATIONS: dict[type[nn.Module] | None, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    nn.ReLU: (F.relu, ()),
    nn.ReLU6: (F.hardtanh, (0.0, 6.0)),
    nn.SiLU: (F.silu, ()),
    nn.Hardswish: (F.hardswish, ()),
    nn.Hardsigmoid: (F.hardsigmoid, ()),
}
"""Modules that do no more than call a function, which takes a piece half the time to call."""


@dataclass(frozen=True)
class TileMark:
    """Which piece of how many a node belongs to, and the node that it runs a part of."""

    region: int
    tile: int
    tiles: int
    origin: str


class PieceCalls:
    """Makes the nodes of one region's pieces; ``near`` is the operation at hand, ``mark`` the piece."""

    def __init__(self, graph_module: GraphModule, network: PatchNetwork, start: int, end: int) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.network = network
        self.start, self.end = start, end
        self.weights: dict[int, tuple[Node, Node | None]] = {}
        self.mark: TileMark | None = None
        self.near: Step | None = None

    def run_on(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        """The node of an operation on parts of its inputs, as its rule's action says."""
        assert step.rule is not None
        laid: Node = getattr(self, f"_lay_{step.rule.action}")(step, run, values)
        return laid

    def _lay_call(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        if self.network.is_folded(step, self.start):
            return values[0]
        node = step.node
        module: Any = self.network.modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) in ACTIVATIONS and not module._forward_hooks and not module._forward_pre_hooks:
            function, limits = ACTIVATIONS[type(module)]
            return self._call(function, (values[0], *limits, module.inplace))
        taken = dict(zip(node.all_input_nodes, values, strict=True))
        args, kwargs = map_arg(node.args, taken.__getitem__), map_arg(node.kwargs, taken.__getitem__)
        return self._node(node.op, node.target, args, "", kwargs)

    def _lay_item(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        divided, index = step.node.args
        assert isinstance(divided, Node)
        args = map_arg(divided.args, lambda _: values[0])
        several = self._node(divided.op, divided.target, args, "several", divided.kwargs)
        return self._call(operator.getitem, (several, index))

    def _lay_window(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        module: Any = self.network.modules[str(step.node.target)]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        value, padding = self._padded(values[0], run, mode, 0.0), (run.rows.padding, run.columns.padding)
        if operators.is_plain_convolution(module):
            options = (module.stride, padding, module.dilation, module.groups)
            return self._call(torch.conv2d, (value, *self._weights(step), *options))
        return self._node("call_module", self._variant(step, padding=padding, padding_mode="zeros"), (value,))

    def _lay_transposed(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        module: Any = self.network.modules[str(step.node.target)]
        padding, extra = ((getattr(run.rows, n), getattr(run.columns, n)) for n in ("padding", "extra"))
        if operators.is_plain_convolution(module):
            options = (module.stride, padding, extra, module.groups, module.dilation)
            return self._call(torch.conv_transpose2d, (values[0], *self._weights(step), *options))
        return self._node("call_module", self._variant(step, padding=padding, output_padding=extra), (values[0],))

    def _weights(self, step: Step) -> tuple[Node, Node | None]:
        """Weight and bias of a convolution, those of the norm after it in them: the first piece reads them for all."""
        if step.position not in self.weights:
            self.weights[step.position] = self._read_weights(step)
        return self.weights[step.position]

    def _read_weights(self, step: Step) -> tuple[Node, Node | None]:
        path = str(step.node.target)
        convolution: Any = self.network.modules[path]
        norm = self.network.norm_after(step, self.end)
        if norm is None:
            bias = None if convolution.bias is None else self._node("get_attr", f"{path}.bias", (), "bias")
            return self._node("get_attr", f"{path}.weight", (), "weight"), bias
        folded: Any = FoldedWeights(convolution, self.network.modules[str(norm.node.target)])  # type: ignore[arg-type]
        self.graph_module.add_submodule(f"{path}_folded", folded)
        both = self._node("call_module", f"{path}_folded", (), "folded")
        return self._call(operator.getitem, (both, 0), "weight"), self._call(operator.getitem, (both, 1), "bias")

    def _lay_enlarge(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        assert step.rule is not None
        rules: Any = step.rule.along
        module = self.network.modules.get(str(step.node.target)) if step.node.op == "call_module" else None
        arguments = dict(zip(("input", "size", "scale_factor", "mode"), step.node.args, strict=False))
        mode = getattr(module, "mode", None) or (arguments | dict(step.node.kwargs)).get("mode", "nearest")
        options = {"scale_factor": (float(rules[0].factor), float(rules[1].factor)), "mode": mode}
        return self._call(F.interpolate, (values[0],), "", options)

    def _lay_pad(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        module = self.network.modules.get(str(step.node.target)) if step.node.op == "call_module" else None
        _, mode, value = pad_arguments(step.node, module)
        return self._padded(values[0], run, mode, value)

    def _lay_slice(self, step: Step, run: Run, values: Sequence[Node]) -> Node:
        parts = expand_index(step.node.args[1], len(step.shape))
        assert parts is not None
        assert step.axes is not None
        for axis in step.axes:
            parts[axis] = slice(None, None, parts[axis].step)
        return self._call(operator.getitem, (values[0], tuple(parts)))

    def _padded(self, value: Node, run: Run, mode: str, fill: float) -> Node:
        amounts = (run.columns.before, run.columns.after, run.rows.before, run.rows.after)
        if not any(amounts):
            return value
        return self._call(F.pad, (value, amounts, mode, *((fill,) if mode == "constant" else ())), "padded")

    def _variant(self, step: Step, **settings: Any) -> str:
        """The path of a module like the step's with other settings, which shares its weights."""
        path = str(step.node.target)
        module = self.network.modules[path]
        if not pads_itself(module) and all(getattr(module, name) == value for name, value in settings.items()):
            return path
        name = "_".join([path, *(f"{'x'.join(map(str, v))}" for v in settings.values() if not isinstance(v, str))])
        if name not in self.network.modules:
            self.network.modules[name] = make_variant(module, settings)
            self.graph_module.add_submodule(name, self.network.modules[name])
        return name

    def _call(self, target: Any, args: tuple[Any, ...], name: str = "", kwargs: Any = None) -> Node:
        return self._node("call_function", target, args, name, kwargs)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], name: str = "", kwargs: Any = None) -> Node:
        assert self.near is not None
        origin = self.near.node
        tile = f"tile{self.mark.tile + 1}of{self.mark.tiles}" if self.mark else ""
        title = "_".join(filter(None, (origin.name, tile, name)))
        node = self.graph.create_node(op, target, args, kwargs or {}, title)
        node.meta = {k: v for k, v in origin.meta.items() if k == "nn_module_stack"}
        if origin.op == "call_module":
            node.meta.setdefault("nn_module_stack", {str(origin.target): (str(origin.target), nn.Module)})
        if self.mark is not None:
            node.meta[TILE] = self.mark
        return node


def make_variant(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A module with other settings that shares the weights, whatever becomes of them."""
    variant: Any = copy.copy(module)  # its table of parameters is the very same
    for name, value in settings.items():
        setattr(variant, name, value)
    if pads_itself(module):
        variant.__class__ = nn.Conv2d  # what its own class pads is padded before it
    if "padding_mode" in settings:
        variant._reversed_padding_repeated_twice = [p for p in reversed(settings["padding"]) for _ in (0, 1)]
    return variant  # type: ignore[no-any-return]
