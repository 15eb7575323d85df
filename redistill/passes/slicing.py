"""Slicing: new steps for strided slices, and new borders for crops, where their grid becomes coarser."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch.fx import Node

from redistill.tracing.operators import crops_of, slices_of


def restep(node: Node, axes: Sequence[int], strides: Sequence[Fraction]) -> None:
    """New steps for a strided slice, which begins as far within the first as before."""
    steps = list(slices_of(node) or ())
    for axis, stride in zip(axes, strides, strict=True):
        start, step = steps[axis].start or 0, steps[axis].step or 1
        steps[axis] = slice(start * int(stride) // step or None, None, int(stride))
    node.args = (node.args[0], tuple(steps))


def recrop(node: Node, axes: Sequence[int], shape: Sequence[int], target: Sequence[int]) -> None:
    """New borders for a crop of a map of ``shape``, in the proportion of its own, so that ``target`` sides are left."""
    crops = list(crops_of(node) or ())
    for axis, side in zip(axes, target, strict=True):
        start, end = crops[axis]
        excess = max(0, shape[axis] - side)
        before = excess * start // max(1, start + end)
        crops[axis] = before, excess - before
    node.args = (node.args[0], tuple(slice(start or None, -end or None) for start, end in crops))
