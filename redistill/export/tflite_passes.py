"""What the converter leaves in a file that costs memory, taken out; the values computed stay the same to the bit.

A copy is an activation of its own. The converter cuts a map along one axis after the other, turns a map to put zeros
around it and back, and puts zeros in an operation of its own before a convolution of stride 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from redistill.export.tflite_file import TfliteFile

SAME = 0
"""The schema's Padding: as many zeros as make the output as large as the input, divided by the stride, rounded up."""
Kernel = tuple[int, int]


def slim(data: bytes) -> bytes:
    """The file without needless copies."""
    file = TfliteFile(data)
    for rewrite in (cut_at_once, pad_as_it_lies, pad_by_kernels):
        rewrite(file)
        file.drop_unread()
    return file.pack()


def cut_at_once(file: TfliteFile) -> None:
    """A slice of a slice becomes one slice."""
    for inner in list(file.named("slice")):
        outer = file.maker(inner.inputs[0])
        if outer is None or file.name(outer) != "slice":
            continue
        begins = [file.constant(slicing.inputs[1]) for slicing in (outer, inner)]
        inner.inputs = [
            outer.inputs[0],
            file.add_constant(inner.inputs[1], begins[0] + begins[1]),
            file.add_constant(inner.inputs[2], np.array(file.shape(inner.outputs[0]), begins[1].dtype)),
        ]


def pad_as_it_lies(file: TfliteFile) -> None:
    """A map that is turned, padded and turned back is padded as it lies."""
    for pad in list(file.named("pad", "padv2")):
        before = file.maker(pad.inputs[0])
        after = file.users(pad.outputs[0])
        if before is None or len(after) != 1 or any(file.name(o) != "transpose" for o in (before, *after)):
            continue
        turned, back = (list(file.constant(o.inputs[1])) for o in (before, after[0]))
        if [turned[axis] for axis in back] != list(range(len(turned))):
            continue
        amounts = file.constant(pad.inputs[1])[back]
        pad.inputs = [before.inputs[0], file.add_constant(pad.inputs[1], amounts), *pad.inputs[2:]]
        pad.outputs, after[0].outputs = after[0].outputs, pad.outputs
        file.operations.remove(after[0])


def pad_by_kernels(file: TfliteFile) -> None:
    """Zeros put before a convolution become zeros at the end of its kernel, where the copy would raise the peak.

    With stride 2 and an even side, the 'same' padding of a kernel of 3 begins one later than PyTorch's padding of 1;
    that of a kernel of 4 begins with it. The larger kernel costs operations, so it is taken where memory needs it.
    """
    fused = [found for pad in file.named("pad") if (found := _find_fused(file, pad)) is not None]
    least = max(file.live(file.without([pair.pad for pair in fused])))
    for pair in sorted(fused, key=lambda pair: pair.extra, reverse=True):
        others = [other for other in fused if other is not pair]
        if pair.extra and max(file.live(file.without([other.pad for other in others]))) <= least:
            fused = others
    larger: dict[tuple[int, Kernel], int] = {}
    for pair in fused:
        key = (int(pair.convolution.inputs[1]), pair.kernel)
        if key not in larger:
            larger[key] = _enlarge(file, *key)
        pair.convolution.inputs[:2] = [pair.pad.inputs[0], larger[key]]
        pair.convolution.builtinOptions.padding = SAME


@dataclass(frozen=True)
class _Fused:
    """A pad and the convolution that can do without it, with a kernel so large; ``extra`` counts the zeros in that."""

    pad: Any
    convolution: Any
    kernel: Kernel
    extra: int


def _find_fused(file: TfliteFile, pad: Any) -> _Fused | None:
    users = file.users(pad.outputs[0])
    if len(users) != 1 or file.name(users[0]) not in ("conv_2d", "depthwise_conv_2d"):
        return None
    options, weight = users[0].builtinOptions, file.shape(users[0].inputs[1])
    amounts = file.constant(pad.inputs[1])
    if options.padding == SAME or amounts[[0, 3]].any() or (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return None
    source, result = file.shape(pad.inputs[0]), file.shape(users[0].outputs[0])
    sides = [
        _same_side(source[axis], result[axis], stride, weight[axis], int(amounts[axis][0]))
        for axis, stride in ((1, options.strideH), (2, options.strideW))
    ]
    if None in sides:
        return None
    kernel = (sides[0] or 0, sides[1] or 0)
    return _Fused(pad, users[0], kernel, (kernel[0] * kernel[1] - weight[1] * weight[2]) * math.prod(result))


def _same_side(source: int, result: int, stride: int, kernel: int, before: int) -> int | None:
    """The least kernel whose 'same' padding begins with so many zeros, by which it can take the place of another."""
    if result != -(-source // stride):
        return None
    exact = 2 * before + source - (result - 1) * stride
    return next((side for side in (exact, exact + 1) if kernel <= side <= 2 * kernel), None)


def _enlarge(file: TfliteFile, weight: int, kernel: Kernel) -> int:
    """A weight with zeros at the end of its rows and columns."""
    values = file.constant(weight)
    if values.shape[1:3] == kernel:
        return weight
    more = [(0, 0), *((0, side - own) for side, own in zip(kernel, values.shape[1:3], strict=True)), (0, 0)]
    return file.add_constant(weight, np.pad(values, more))
