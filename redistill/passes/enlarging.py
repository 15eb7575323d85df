"""Enlarging: what a tail's many channels are laid out with, and sizes that follow a coarser grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class GridShuffle(nn.Module):
    """Lay channels out in space on a grid of any number of axes: (B, C * prod(times), ...) to (B, C, ... * times).

    On two axes enlarged alike it is ``nn.PixelShuffle`` (Shi et al. 2016, arXiv 1609.05158).
    """

    def __init__(self, times: Sequence[int]) -> None:
        super().__init__()
        self.times = tuple(times)

    def forward(self, x: Tensor) -> Tensor:
        """Split the channels, and lay each part beside the side it enlarges."""
        dims = len(self.times)
        batch, sides = x.shape[0], x.shape[2:]
        split = x.reshape(batch, -1, *self.times, *sides)
        order = [axis for d in range(dims) for axis in (2 + dims + d, 2 + d)]
        enlarged = [side * times for side, times in zip(sides, self.times, strict=True)]
        return split.permute(0, 1, *order).reshape(batch, -1, *enlarged)

    def extra_repr(self) -> str:
        """How many times each side grows."""
        return "x".join(map(str, self.times))


def shuffle(times: Sequence[int]) -> nn.Module:
    """The module that enlarges each side so many times by its channels."""
    if len(times) == 2 and len(set(times)) == 1:
        return nn.PixelShuffle(times[0])
    return GridShuffle(times)


def repeat(times: Sequence[int]) -> nn.Module:
    """The module that enlarges each side so many times by repeating its cells."""
    return nn.Upsample(scale_factor=tuple(float(t) for t in times), mode="nearest")


def scale_size(size: Any, times: int, over: int, excess: int = 0) -> Any:
    """A size, or each of several, ``times`` over ``over``, rounded up as padded convolutions do, less ``excess``."""
    if isinstance(size, (tuple, list)):
        return tuple(scale_size(side, times, over, excess) for side in size)
    return -(-size * times // over) - excess
