"""Reshuffling: what lays channels out in space, or cells out in channels, where its two grids are pooled unequally."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Reshuffle(nn.Module):
    """A pixel shuffle by ``own`` (or its inverse, where ``down``) that changes sides ``times`` instead.

    Its channels stay as they are, since what follows reads them. Where the coarser grid has fewer cells than channels
    ask for, cells are repeated; where it has more, their mean is taken.
    """

    def __init__(self, own: int, times: int, down: bool) -> None:
        super().__init__()
        self.own, self.times, self.down = own, times, down

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * own^2, H / times, W / times), or from (B, C * own^2, H, W) up."""
        return self._fold(x) if self.down else self._unfold(x)

    def _fold(self, x: Tensor) -> Tensor:
        if self.times >= self.own:
            return F.pixel_unshuffle(F.avg_pool2d(x, self.times // self.own), self.own)
        copies = self.own // self.times
        folded, times = F.pixel_unshuffle(x, self.times), self.times
        batch, sides = x.shape[0], folded.shape[2:]
        split = folded.reshape(batch, -1, times, 1, times, 1, *sides)
        return split.expand(-1, -1, -1, copies, -1, copies, *sides).reshape(batch, -1, *sides)

    def _unfold(self, x: Tensor) -> Tensor:
        if self.times >= self.own:
            return F.interpolate(F.pixel_shuffle(x, self.own), scale_factor=float(self.times // self.own))
        merged = self.own // self.times
        batch, sides = x.shape[0], x.shape[2:]
        means = x.reshape(batch, -1, self.times, merged, self.times, merged, *sides).mean((3, 5))
        return F.pixel_shuffle(means.reshape(batch, -1, *sides), self.times)

    def extra_repr(self) -> str:
        """What it stands for, and by how much it changes sides."""
        return f"{self.own}, times={self.times}, down={self.down}"
