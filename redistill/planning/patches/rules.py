"""The table of reach rules: how each operation is run for a part of its output. What has no rule ends a region."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from redistill.planning.patches.axes import AxisRule, Enlarge, Pad, Pointwise, Pool, Shrink, Slice, Transposed, Window
from redistill.tracing import operators
from redistill.tracing.linear_calls import find_own_padding

Axes = tuple[int, int]
MAP_AXES: Axes = (2, 3)
POINTWISE = Pointwise()


@dataclass(frozen=True)
class Rule:
    """How an operation is run for a part of its output.

    Attributes:
        action: what carries it out: ``call`` as it is, ``item`` for one of several maps, ``window``, ``transposed``,
            ``enlarge``, ``pad`` or ``slice``.
        along: the rule along height and width of the first input; other inputs are read at the same place.
        axes: where the output has its height and width.
        by_input: whether the work grows with the part of the input rather than of the output.
    """

    action: str
    along: tuple[AxisRule, AxisRule] = (POINTWISE, POINTWISE)
    axes: Axes = MAP_AXES
    by_input: bool = False


@dataclass(frozen=True)
class Subject:
    """An operation to find a rule for: its node and module, and of each input shape, axes and whether it is a map."""

    node: Node
    module: nn.Module | None
    shape: Any
    inputs: tuple[tuple[Node, Any, Axes | None], ...]
    hands_on: bool

    @property
    def source(self) -> tuple[int, ...]:
        """Shape of the first input."""
        return tuple(self.inputs[0][1])

    @property
    def axes(self) -> Axes:
        """Height and width axes of the first input."""
        assert self.inputs[0][2] is not None
        return self.inputs[0][2]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the first input."""
        return self.source[self.axes[0]], self.source[self.axes[1]]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of the call, the input being the one at 0."""
        args = self.node.args
        return args[position] if len(args) > position else self.node.kwargs.get(name, default)


Finder = Callable[[Subject], "Rule | None"]


def find_rule(subject: Subject) -> Rule | None:
    """The rule of an operation; None if it has none."""
    if not subject.inputs or subject.inputs[0][2] is None:
        return None
    if subject.module is not None:
        found = next((find for kinds, find in _MODULES if isinstance(subject.module, kinds)), None)
        if found is None:
            return _same(subject) if subject.hands_on else None
        return found(subject)
    find = _FUNCTIONS.get(operators.name_of(subject.node))
    return find(subject) if find is not None else None


def _same(subject: Subject) -> Rule | None:
    """Position by position, other inputs of the same grid or broadcast over it."""
    return Rule("call", axes=subject.axes)


def _over(name: str, position: int = 1) -> Finder:
    """An operation over other axes than height and width, as its argument ``name`` says."""

    def find(subject: Subject) -> Rule | None:
        module = subject.module
        given = getattr(module, name, None) if module is not None else subject.argument(position, name)
        dims = [given] if isinstance(given, int) else given
        if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims):
            return None
        rank = len(subject.source)
        if {d % rank for d in dims} & set(subject.axes):
            return None
        return Rule("call", axes=subject.axes) if len(subject.shape) == rank else None

    return find


def _concatenation(subject: Subject) -> Rule | None:
    sides = {tuple(shape[a] for a in axes or ()) for _, shape, axes in subject.inputs}
    return _over("dim")(subject) if len(sides) == 1 and subject.argument(1, "dim", 0) is not None else None


def _chunks(subject: Subject) -> Rule | None:
    dim = subject.argument(2, "dim", 0)
    return Rule("call", axes=subject.axes) if dim % len(subject.source) not in subject.axes else None


def _layer_norm(subject: Subject) -> Rule | None:
    """Over trailing axes; a subclass for maps (B, C, H, W) normalises over channels."""
    module = subject.module
    given = subject.argument(1, "normalized_shape") if module is None else module.normalized_shape
    shape = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    source = subject.source
    if min(subject.axes) >= 0 and max(subject.axes) < len(source) - len(shape):
        return _same(subject)
    own = module is not None and type(module).forward is not nn.LayerNorm.forward
    channels_first = subject.axes == MAP_AXES and shape == source[1:2] and source[3] != source[1]
    return _same(subject) if own and channels_first else None


def _batch_norm(subject: Subject) -> Rule | None:
    """With the statistics it has learnt; one without any looks at the whole map."""
    module = subject.module
    if module is not None:
        return _same(subject) if getattr(module, "running_mean", None) is not None else None
    given = subject.argument(1, "running_mean") is not None and not subject.argument(5, "training", False)
    return _same(subject) if given else None


def _linear(subject: Subject) -> Rule | None:
    return _same(subject) if len(subject.source) - 1 not in subject.axes else None


def _permutation(subject: Subject) -> Rule | None:
    name = operators.name_of(subject.node)
    rank = len(subject.source)
    if name == "transpose":
        order = list(range(rank))
        a, b = subject.argument(1, "dim0"), subject.argument(2, "dim1")
        order[a], order[b] = order[b], order[a]
    else:
        given = subject.node.args[1:]
        dims: Any = given[0] if given and isinstance(given[0], (tuple, list)) else given
        order = [d % rank for d in dims]
    if len(order) != rank:
        return None
    axes = (order.index(subject.axes[0]), order.index(subject.axes[1]))
    return Rule("call", axes=axes) if axes[0] < axes[1] else None


def _convolution(subject: Subject) -> Rule | None:
    module = subject.module
    plain = nn.Conv2d
    if not isinstance(module, plain) or subject.axes != MAP_AXES or len(subject.source) != 4:
        return None
    if pads_itself(module):
        return _padded_by_itself(subject)
    mode = {"zeros": "zeros", "reflect": "reflect", "replicate": "replicate"}.get(module.padding_mode)
    if mode is None:
        return None
    axes = []
    for axis in (0, 1):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        if isinstance(module.padding, str):
            left = (reach - 1) // 2 if module.padding == "same" else 0
        else:
            left = module.padding[axis]
        axes.append(Window(subject.sides[axis], reach, module.stride[axis], left, mode))
    return Rule("window", (axes[0], axes[1]))


def pads_itself(module: nn.Module) -> bool:
    """Whether a convolution's class has a forward of its own."""
    own = isinstance(module, nn.Conv2d) and type(module)._conv_forward is not nn.Conv2d._conv_forward
    return own or (isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward)


def _padded_by_itself(subject: Subject) -> Rule | None:
    """A convolution of a class that pads with zeros and does nothing else: seen by what it computes on a sample."""
    module: Any = subject.module
    top_left = find_own_padding(module, (1, *subject.source[1:]))
    if top_left is None:
        return None
    rows, columns = (
        Window(side, dilation * (kernel - 1) + 1, stride, before, "zeros")
        for side, dilation, kernel, stride, before in zip(
            subject.sides, module.dilation, module.kernel_size, module.stride, top_left, strict=True
        )
    )
    return Rule("window", (rows, columns))


def _pool(subject: Subject) -> Rule | None:
    module: Any = subject.module
    if subject.axes != MAP_AXES or getattr(module, "return_indices", False):
        return None
    kernel, stride, padding, dilation = (
        _pair(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    rows, columns = (
        Pool(side, d * (k - 1) + 1, s, p, bool(module.ceil_mode))
        for side, k, s, p, d in zip(subject.sides, kernel, stride, padding, dilation, strict=True)
    )
    return Rule("call", (rows, columns))


def _transposed(subject: Subject) -> Rule | None:
    module: Any = subject.module
    if subject.axes != MAP_AXES or type(module).forward is not nn.ConvTranspose2d.forward:
        return None
    rows, columns = (
        Transposed(side, dilation * (kernel - 1) + 1, stride, padding)
        for side, kernel, stride, padding, dilation in zip(
            subject.sides, module.kernel_size, module.stride, module.padding, module.dilation, strict=True
        )
    )
    return Rule("transposed", (rows, columns), by_input=True)


_MARGINS = {"nearest": 0, "nearest-exact": 0, "bilinear": 1, "bicubic": 2}


def _enlarging(subject: Subject) -> Rule | None:
    module: Any = subject.module
    names = ("mode", "align_corners", "antialias")
    if module is not None:
        mode, corners, smooth = (getattr(module, name, None) for name in names)
    else:
        given = (subject.argument(p, n) for p, n in zip((3, 4, 6), names, strict=True))
        mode, corners, smooth = given
    mode = mode or "nearest"
    if subject.axes != MAP_AXES or mode not in _MARGINS or corners or smooth or len(subject.shape) != 4:
        return None
    factors = [out / side for out, side in zip(subject.shape[2:], subject.sides, strict=True)]
    if not all(f.is_integer() and f >= 1 for f in factors) or not _whole_scale(subject, module):
        return None
    rows, columns = (Enlarge(s, int(f), _MARGINS[mode]) for s, f in zip(subject.sides, factors, strict=True))
    return Rule("enlarge", (rows, columns))


def _whole_scale(subject: Subject, module: Any) -> bool:
    """Whether the scale given is the one that the sizes say: 2.1 makes 8 of 4 and yet is not 2."""
    scale = module.scale_factor if module is not None else subject.argument(2, "scale_factor")
    scales = scale if isinstance(scale, (tuple, list)) else (scale,)
    return all(s is None or float(s).is_integer() for s in scales)


def _shuffle(subject: Subject) -> Rule | None:
    module: Any = subject.module
    factor = module.upscale_factor if module is not None else subject.argument(1, "upscale_factor")
    if subject.axes != MAP_AXES or not isinstance(factor, int):
        return None
    rows, columns = (Enlarge(side, factor, 0) for side in subject.sides)
    return Rule("call", (rows, columns))


def _unshuffle(subject: Subject) -> Rule | None:
    module: Any = subject.module
    factor = module.downscale_factor if module is not None else subject.argument(1, "downscale_factor")
    return Rule("call", (Shrink(factor), Shrink(factor))) if subject.axes == MAP_AXES else None


def pad_arguments(node: Node, module: nn.Module | None) -> tuple[tuple[int, ...], str, float]:
    """Amounts (left, right, top, bottom), mode and value of a pad."""
    if module is not None:
        kinds = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
        mode = next((name for kind, name in kinds.items() if isinstance(module, kind)), "constant")
        amounts: Any = module.padding
        return tuple(amounts), mode, float(getattr(module, "value", 0.0) or 0.0)
    arguments = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | dict(node.kwargs)
    value = arguments.get("value")
    return tuple(arguments["pad"]), str(arguments.get("mode", "constant")), float(value or 0.0)  # type: ignore[arg-type]


def _padding(subject: Subject) -> Rule | None:
    amounts, mode, _ = pad_arguments(subject.node, subject.module)
    plain = all(isinstance(a, int) for a in amounts) and len(amounts) == 4
    if subject.axes != MAP_AXES or not plain or mode not in ("constant", "reflect", "replicate"):
        return None
    rows, columns = (Pad(side, a, mode) for side, a in zip(subject.sides, (amounts[2], amounts[0]), strict=True))
    return Rule("pad", (rows, columns))


def _item(subject: Subject) -> Rule | None:
    """One of a tuple of maps, or a slice of a map."""
    index = subject.node.args[1]
    if isinstance(index, int):
        from_tuple = subject.node.args[0] is not subject.inputs[0][0]  # then the input is what the tuple is made of
        return Rule("item", axes=subject.axes) if from_tuple else None
    parts = expand_index(index, len(subject.source))
    if parts is None or len(subject.shape) != len(subject.source):
        return None
    if not all(isinstance(p, slice) and _is_constant(p) for p in parts):
        return None
    rules = []
    for axis, side in zip(subject.axes, subject.sides, strict=True):
        start, _, step = parts[axis].indices(side)
        rules.append(Slice(start, step))
    return Rule("slice", (rules[0], rules[1]), subject.axes)


def expand_index(index: Any, rank: int) -> list[Any] | None:
    """An index as one entry for each axis; None if it holds anything but slices and one ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is None or isinstance(p, (Node, int)) for p in parts):
        return None
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    return [*parts, *[slice(None)] * (rank - len(parts))]


def _is_constant(part: slice) -> bool:
    return all(p is None or isinstance(p, int) for p in (part.start, part.stop, part.step)) and (part.step or 1) > 0


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


_MODULES: tuple[tuple[Any, Finder], ...] = (
    (operators.POINTWISE_MODULES, _same),
    ((nn.Identity, nn.ChannelShuffle, nn.Softmax2d, nn.Threshold, nn.Hardshrink, nn.Softsign, nn.Tanhshrink), _same),
    (_BatchNorm, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.Linear, _linear),
    ((nn.Softmax, nn.LogSoftmax, nn.GLU), _over("dim")),
    (nn.ConvTranspose2d, _transposed),
    (nn.Conv2d, _convolution),
    ((nn.MaxPool2d, nn.AvgPool2d), _pool),
    (nn.Upsample, _enlarging),
    (nn.PixelShuffle, _shuffle),
    (nn.PixelUnshuffle, _unshuffle),
    ((nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), _padding),
)
_POINTWISE = (
    "add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "maximum", "minimum", "pow", "rsub",
    "where", "lerp", "contiguous", "clone", "detach", "float", "sigmoid", "channel_shuffle", "addcmul",
    "clip", "log", "log1p", "sin", "cos", "rsqrt", "reciprocal", "sign", "prelu", "hardshrink", "threshold",
)  # fmt: skip
_FUNCTIONS: dict[str, Finder] = {
    **dict.fromkeys((*_POINTWISE, *operators.POINTWISE_NAMES), _same),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenation),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _over("dim")),
    **dict.fromkeys(("softmax", "log_softmax", "glu"), _over("dim")),
    **dict.fromkeys(("chunk", "split", "tensor_split"), _chunks),
    **dict.fromkeys(("permute", "transpose"), _permutation),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "interpolate": _enlarging,
    "upsample": _enlarging,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _unshuffle,
    "pad": _padding,
    operator.getitem.__name__: _item,
}

TAKE_WEIGHTS = ("batch_norm", "layer_norm", "linear", "prelu")
"""Functions whose further inputs are weights, not maps."""
