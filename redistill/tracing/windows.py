"""Windows: operations that slide over a grid, read and given new strides alike, be they modules or functions.

One table says which operations these are and over how many axes they slide; a ``Window`` holds what they have in
common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from redistill.tracing.copying import shallow_copy
from redistill.tracing.meta import Meta
from redistill.tracing.operators import name_of

Sides = tuple[int, ...]
_PADS = (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)
_POOLS = (_MaxPoolNd, _AvgPoolNd, _LPPoolNd)
_FUNCTION = re.compile(r"(conv|conv_transpose|max_pool|avg_pool|lp_pool)([123])d")
_KINDS = {"conv": "convolution", "conv_transpose": "transposed"}
_ARGUMENTS = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp_pool": ("input", "norm_type", "kernel_size", "stride", "ceil_mode"),
}


@dataclass(frozen=True)
class Window:
    """How an operation slides over its grid, an entry for each axis; ``kind`` is convolution, pool or transposed.

    ``pads_itself`` says that the module's class has a forward of its own, which may pad by itself; ``spare`` how many
    cells at either end of what it reads are padding that nobody would miss.
    """

    kind: str
    kernel: Sides
    stride: Sides
    padding: Sides
    dilation: Sides
    output_padding: Sides
    ceil_mode: bool = False
    pads_itself: bool = False
    spare: Sides = ()

    @property
    def reach(self) -> Sides:
        """The part of the input's side that one window spans."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))


def sliding_kind(node: Node, module: nn.Module | None) -> tuple[str, int] | None:
    """The kind of a sliding operation and over how many trailing axes it slides; None for all others."""
    if isinstance(module, _ConvTransposeNd):
        return "transposed", len(module.kernel_size)
    if isinstance(module, _ConvNd):
        return "convolution", len(module.kernel_size)
    if isinstance(module, _POOLS):
        names = (c.__name__ for c in type(module).__mro__ if c.__module__ == "torch.nn.modules.pooling")
        return "pool", int(next(names)[-2])
    found = _FUNCTION.fullmatch(name_of(node)) if node.op == "call_function" else None
    return (_KINDS.get(found[1], "pool"), int(found[2])) if found else None


def read_window(node: Node, module: nn.Module | None, weight_sides: Callable[[Node], Sequence[int]]) -> Window:
    """The window of a sliding operation; ``weight_sides`` tells the kernel's sides for a weight that is a node."""
    found = sliding_kind(node, module)
    assert found is not None, f"{node} slides over no grid"
    kind, dims = found
    get: Callable[[str, Any], Any]
    if module is None:
        given = _bind(node)
        weight = given.get("weight")
        if isinstance(weight, Node):
            given["kernel_size"] = tuple(weight_sides(weight))
        get = given.get
    else:
        get = lambda name, default: getattr(module, name, default)  # noqa: E731
    kernel, dilation = _sides(get("kernel_size", 1), dims), _sides(get("dilation", 1), dims)
    stride = get("stride", None)
    default = kernel if kind == "pool" else (1,) * dims
    return Window(
        kind, kernel, default if stride is None or stride == [] else _sides(stride, dims),
        _padding(get("padding", 0), kernel, dilation), dilation, _sides(get("output_padding", 0), dims),
        bool(get("ceil_mode", False)), _has_own_forward(module),
    )  # fmt: skip


def write_window(node: Node, module: nn.Module | None, window: Window) -> nn.Module | None:
    """Give the operation this window: a function's node is changed in place, of a module a copy is returned."""
    if module is None:
        given, names = _bind(node), _ARGUMENTS[_match(node)[1]]
        given |= {k: v for k, v in _values(window).items() if k in names and k != "weight"}
        node.args = tuple(given.pop(n) for n in names[:1])
        node.kwargs = given
        return None
    fitted: Any = shallow_copy(module)
    for name, value in _values(window).items():
        if hasattr(fitted, name):
            setattr(fitted, name, value)
    if isinstance(fitted, _ConvNd):
        fitted._reversed_padding_repeated_twice = [p for p in reversed(window.padding) for _ in (0, 1)]
    return fitted  # type: ignore[no-any-return]


def padding_made(node: Node, module: nn.Module | None, dims: int) -> Sides:
    """How many cells a pad adds at either end of each of the last ``dims`` axes, the fewer of both; 0 for all else."""
    ends: Any = getattr(module, "padding", ()) if isinstance(module, _PADS) else ()
    if node.op == "call_function" and name_of(node) == "pad":
        ends = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())
    ends = tuple(ends) if isinstance(ends, (tuple, list)) and all(isinstance(e, int) for e in ends) else ()
    made = [max(0, min(pair)) for pair in zip(ends[::2], ends[1::2], strict=False)][:dims]
    return (0,) * (dims - len(made)) + tuple(reversed(made))


def shuffle_of(node: Node, module: nn.Module | None) -> tuple[int, bool] | None:
    """By how much a pixel shuffle changes sides, and whether it makes them shorter; None for all else."""
    if isinstance(module, (nn.PixelShuffle, nn.PixelUnshuffle)):
        down = isinstance(module, nn.PixelUnshuffle)
        return int(module.downscale_factor if down else module.upscale_factor), down  # type: ignore[arg-type]
    if node.op != "call_function" or name_of(node) not in ("pixel_shuffle", "pixel_unshuffle"):
        return None
    down = name_of(node) == "pixel_unshuffle"
    given = node.args[1] if len(node.args) > 1 else next(iter(v for k, v in node.kwargs.items() if k != "input"), None)
    return (given, down) if isinstance(given, int) else None


def with_own_padding(window: Window, own: Window) -> Window:
    """``window`` with the padding that the operation itself has."""
    return replace(window, padding=own.padding)


def constant_size(node: Node, module: nn.Module | None) -> Sides | None:
    """The size that a resize brings any map to, if it is a constant; None for all else."""
    size: Any
    if isinstance(module, nn.Upsample):
        size = module.size
    elif node.op == "call_function" and name_of(node) in ("interpolate", "upsample"):
        size = node.kwargs.get("size", node.args[1] if len(node.args) > 1 else None)
    else:
        return None
    sides = _sides(size, len(node.meta[Meta.SHAPE]) - 2) if isinstance(size, (int, tuple, list)) else ()
    return sides if sides and all(isinstance(side, int) for side in sides) else None


def _values(window: Window) -> dict[str, Any]:
    values = {"stride": window.stride, "padding": window.padding}
    if window.kind == "pool":
        return values | {"kernel_size": window.kernel}
    return values | ({"output_padding": window.output_padding} if window.kind == "transposed" else {})


def _match(node: Node) -> re.Match[str]:
    found = _FUNCTION.fullmatch(name_of(node))
    assert found is not None
    return found


def _bind(node: Node) -> dict[str, Any]:
    """The arguments of a function's node by name."""
    return dict(zip(_ARGUMENTS[_match(node)[1]], node.args, strict=False)) | dict(node.kwargs)


def _sides(value: Any, dims: int) -> Sides:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padding(value: Any, kernel: Sides, dilation: Sides) -> Sides:
    if value == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    return (0,) * len(kernel) if value == "valid" else _sides(value, len(kernel))


def _has_own_forward(module: nn.Module | None) -> bool:
    if module is None:
        return False
    forward: Any = type(module).forward
    return not str(forward.__module__).startswith("torch.nn.modules")
