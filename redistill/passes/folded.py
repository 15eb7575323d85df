"""Folded: a convolution's weights with the batch norm after it in them, as inference runs every piece of a region.

Each piece calls both again, and a small call costs what a larger one does. So the norm is folded into the weights once,
and again whenever what they were folded from has changed, however it was written to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from redistill.passes.fold_batch_norm import folded_tensors


class FoldedWeights(nn.Module):
    """Yields the weight and bias of a convolution with the norm after it, which uses the statistics it has learnt.

    They are kept between runs, the weight with its channels last: so are then the maps that it makes, and small
    convolutions take less time on those. Where gradients are wanted, for compilers and on other devices, which would
    have to wait for the comparison, they are computed in every run.
    """

    def __init__(self, convolution: _ConvNd, norm: _BatchNorm) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self.seen: list[Tensor] = []
        self._fold()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        weight = self.convolution.weight
        traced = torch.compiler.is_compiling() or torch._C._is_tracing()
        if traced or torch.is_grad_enabled() or not weight.is_cpu:
            return folded_tensors(self.convolution, self.norm)
        if not isinstance(weight, FakeTensor) and not self._is_current():
            self._fold()
        return self.weight, self.bias

    def _fold(self) -> None:
        with torch.no_grad():
            weight, bias = folded_tensors(self.convolution, self.norm)
            self.seen = [tensor.detach().clone() for tensor in self._sources()]
            weight = weight.clone(memory_format=torch.channels_last)
        self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))

    def _is_current(self) -> bool:
        """Whether all tensors are still those that were folded."""
        now = self._sources()
        known = zip(self.seen, now, strict=False)
        return len(self.seen) == len(now) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in known)

    def _sources(self) -> list[Tensor]:
        convolution, norm = self.convolution, self.norm
        tables: tuple[dict[str, Any], ...] = (convolution._parameters, norm._parameters, norm._buffers)
        names = (("weight", "bias"), ("weight", "bias"), ("running_mean", "running_var"))
        found = (table[name] for table, several in zip(tables, names, strict=True) for name in several)
        return [tensor for tensor in found if tensor is not None]
