"""Norms: batch norms that get the statistics of what a fitted student shows them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class Statistics:
    """Mean and variance of each channel over any number of batches, in double precision."""

    def __init__(self) -> None:
        self.rows = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, value: Tensor) -> None:
        """A batch (B, C, ...); variances of parts are joined as Chan, Golub and LeVeque (1979) do."""
        axes = [axis for axis in range(value.dim()) if axis != 1]
        variance, mean = (part.cpu().double() for part in torch.var_mean(value.float(), axes, correction=0))
        rows = value.numel() // value.shape[1]
        whole, apart = self.rows + rows, mean - self.mean
        self.squares = self.squares + variance * rows + apart.square() * (self.rows * rows / whole)
        self.mean = self.mean + apart * (rows / whole)
        self.rows = whole

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C)."""
        return self.mean, self.squares / self.rows


def calibrate(norm: _BatchNorm, mean: Tensor, variance: Tensor, shift: Tensor | float | None) -> None:
    """Give a batch norm the statistics of its input (C).

    Unless ``shift`` is None, its gain and bias change so that the input plus ``shift`` comes out as it did before, and
    so does what a batch's own statistics give.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = (value.to(norm.running_mean) for value in (mean, variance))
    if shift is not None and norm.affine:
        shift = shift.to(norm.bias) if isinstance(shift, Tensor) else shift
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(gain * (mean + shift - norm.running_mean))
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
