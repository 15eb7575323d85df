"""Batch norms whose statistics are those of the whole batch, over all processes and on any device.

torch's SyncBatchNorm runs on accelerators only. With this one, several processes compute what one process would with
the same batch, on a CPU too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """The sum over processes, and of the gradients that come back from each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's value, differentiable."""
    total: Tensor = _Sum.apply(value)
    return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, which must have equally many."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W] with the mean and variance over all processes while training."""
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        value = input.float()
        sums = torch.stack([value.sum(dim=(0, 2, 3)), value.square().sum(dim=(0, 2, 3))])
        count = value.numel() // value.shape[1] * distributed.get_world_size()
        mean, square = (sum_over_processes(sums) / count).unbind()
        variance = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        normalised: Tensor = value * scale[None, :, None, None] + shift[None, :, None, None]
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def share_statistics(module: nn.Module) -> None:
    """Turn every affine BatchNorm2d inside a module into one that shares its statistics, with the same state."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d and child.affine:
            child.__class__ = SharedBatchNorm2d
