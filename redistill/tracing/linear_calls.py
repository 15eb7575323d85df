"""Calls: the convolutions and matrix products that a network computes, whatever class or function asks for them.

What is fitted is the call, not the module around it: a module that pads its input by itself, a leaf with several
convolutions and a plain function with weights of its own all end in one of a few functions of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


Crop = tuple[slice, ...]
_ALL = (slice(None),) * 3


@dataclass(frozen=True)
class Call:
    """One call of a convolution or of a linear layer: the function and its arguments by name."""

    function: Any
    arguments: dict[str, Any]

    @property
    def inputs(self) -> Tensor:
        """What the layer sees."""
        return self.arguments["input"]  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """Its weights."""
        return self.arguments["weight"]  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """Its bias, if it has one."""
        return self.arguments.get("bias")

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return int(self.arguments.get("groups", 1))

    @property
    def is_linear(self) -> bool:
        """Whether channels are the last axis, as a linear layer has them, and not the second."""
        return self.function not in _CONVOLUTIONS and not self.is_transposed

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.function in _TRANSPOSED

    def output(self) -> Tensor:
        """What it gives, channels second: (B, C', ...)."""
        found: Tensor = self.function(**self.arguments)
        return found.movedim(-1, 1) if self.is_linear else found

    def grid(self, crop: Crop | None = None) -> tuple[int, ...]:
        """Batch and grid of its output, all but the channels; of the part that is left of it by ``crop``."""
        if self.is_linear:
            return tuple(self.inputs.shape[:-1])
        sides = [len(view) for view in self._windows()]
        return (self.inputs.shape[0], *(len(range(s)[part]) for s, part in zip(sides, crop or _ALL, strict=False)))

    def patches(self, crop: Crop | None = None) -> Tensor:
        """What each position of the output sees, by group: (B, groups, features, positions)."""
        if self.is_linear:
            seen = self.inputs.movedim(-1, 1).flatten(2) if self.inputs.dim() > 2 else self.inputs.unsqueeze(2)
        else:
            seen = self._unfolded(crop)
        return seen.reshape(len(seen), self.groups, -1, seen.shape[2])

    def _windows(self) -> list[range]:
        """Where the windows begin, on each axis of the padded input."""
        kernel = self.weight.shape[2:]
        sides = []
        for axis, side in enumerate(self.inputs.shape[2:]):
            reach = self.each("dilation", 1)[axis] * (kernel[axis] - 1)
            sides.append(range(0, side + sum(self.padding()[axis]) - reach, self.each("stride", 1)[axis]))
        return sides

    def _unfolded(self, crop: Crop | None) -> Tensor:
        """(B, C x kernel, positions)."""
        kernel, dilation, stride = self.weight.shape[2:], self.each("dilation", 1), self.each("stride", 1)
        axes = len(kernel)
        seen = F.pad(self.inputs, [p for pair in reversed(self.padding()) for p in pair])
        for axis in range(axes):
            seen = seen.unfold(axis + 2, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
        dilated: Any = (..., *(slice(None, None, d) for d in dilation))
        seen = seen[dilated]  # (B, C, grid, kernel)
        left: Any = (slice(None), slice(None), *(crop or ()))
        seen = seen[left]
        seen = seen.permute(0, 1, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2))
        return seen.reshape(len(seen), -1, math.prod(seen.shape[axes + 2 :]))

    def each(self, name: str, default: int) -> Sequence[int]:
        """An argument on each axis of the grid."""
        value = self.arguments.get(name, default)
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * (self.weight.dim() - 2) if len(values) == 1 else values

    def padding(self) -> list[tuple[int, int]]:
        """The zeros before and after each axis."""
        given = self.arguments.get("padding", 0)
        if not isinstance(given, str):
            return [(p, p) for p in self.each("padding", 0)]
        spans = [d * (k - 1) for d, k in zip(self.each("dilation", 1), self.weight.shape[2:], strict=True)]
        return [(span // 2, span - span // 2) if given == "same" else (0, 0) for span in spans]


class Listening(TorchFunctionMode):
    """While it is entered, ``heard`` is told of every convolution and linear layer before it is computed."""

    def __init__(self, heard: Callable[[Call], None]) -> None:
        super().__init__()
        self.heard = heard

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS or func in _TRANSPOSED or func is F.linear:
            self.heard(Call(func, dict(zip(_NAMES, args, strict=False)) | (kwargs or {})))
        return func(*args, **(kwargs or {}))


class _Reached(BaseException):
    """Ends a node's computation at the call looked for; no handler of ours or of a model's is to stop it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


def catch(weight: Tensor, compute: Callable[[], Any]) -> Call:
    """The call with this very weight that ``compute`` makes; what comes after it is not computed."""

    def heard(call: Call) -> None:
        if call.weight is weight:
            raise _Reached(call)

    try:
        with Listening(heard):
            compute()
    except _Reached as reached:
        return reached.call
    raise LookupError("the weight is not used there")


def on_grid(value: Tensor, call: Call, crop: Crop | None = None) -> Tensor | None:
    """A teacher's output (B, C, ...) as the student's ``call`` should give it; None if the two cannot be compared.

    Averaged to its grid, of which ``crop`` may be all that is read; where a pixel shuffle follows in the student, its
    pixels are laid into channels.
    """
    times = call.weight.shape[0] // value.shape[1]
    side = math.isqrt(times)
    if times > 1 and (value.dim() != 4 or side * side != times):
        return None
    laid = F.pixel_unshuffle(value, side) if side > 1 else value
    batch, *grid = call.grid(crop)
    if list(laid.shape[2:]) == grid:
        return laid if len(laid) == batch else None
    tokens = call.is_linear and len(grid) == 1  # rows of a grid laid end to end: no average of neighbours is meant
    if len(laid) != batch or laid.dim() - 2 != len(grid) or len(grid) not in _POOLS or tokens:
        return None
    return _POOLS[len(grid)](laid, grid)


@torch.no_grad()
def find_own_padding(module: nn.Conv2d, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The rows above and the columns to the left that a convolution's class pads an input of ``shape`` with.

    The module runs once on a sample. None if it does more than pad with zeros and convolve with its own weights, at the
    stride and dilation that it says it has.
    """
    weight = module.weight
    if weight.is_meta:
        return None
    sample = torch.arange(1, math.prod(shape) + 1, device=weight.device).reshape(shape).to(weight.dtype)
    heard: list[Call] = []
    try:
        with Listening(heard.append):
            output = module(sample)
    except Exception:  # its class takes something else than one map
        return None
    if len(heard) != 1 or heard[0].weight is not weight or heard[0].bias is not module.bias:
        return None
    if not isinstance(output, Tensor):
        return None
    call = heard[0]
    said = all(tuple(call.each(n, 1)) == tuple(getattr(module, n)) for n in ("stride", "dilation"))
    if not (said and torch.equal(output, call.output()) and not isinstance(call.arguments.get("padding", 0), str)):
        return None
    return _place(sample, call)


def _place(sample: Tensor, call: Call) -> tuple[int, int] | None:
    """Where a sample lies in the input of a call, the call's own padding included; None if it is not all there."""
    found = (call.inputs == sample[0, 0, 0, 0]).nonzero()
    if len(found) == 0:
        return None
    top, left = (int(index) for index in found[0][2:])
    height, width = sample.shape[2:]
    inside = call.inputs[:, :, top : top + height, left : left + width]
    if inside.shape != sample.shape or not torch.equal(inside, sample):
        return None
    alone = int(call.inputs.count_nonzero()) == int(sample.count_nonzero())
    (above, _), (before, _) = call.padding()
    return (top + above, left + before) if alone else None
