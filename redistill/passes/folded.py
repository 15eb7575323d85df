"""Folded: a convolution and the batch norm after it as one call in inference, both as they are wherever else.

Every piece of a region calls both again, and a small call costs what a larger one does. So the norm is folded into the
weights once, and again whenever what they were folded from has changed, however it was written to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from redistill.passes.fold_batch_norm import folded_tensors
from redistill.tracing.copying import shallow_copy


class FoldedWeights(nn.Module):
    """What a convolution's weight and bias are with the batch norm after it in them."""

    def __init__(self, convolution: _ConvNd, norm: _BatchNorm) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self.seen: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Fold anew if any tensor is no longer what was folded."""
        now = self._sources()
        if self._has_seen(now):
            return
        with torch.no_grad():
            weight, bias = folded_tensors(self.convolution, self.norm)
            self.seen = [tensor.detach().clone() for tensor in now]
        self.weight, self.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))

    def _has_seen(self, now: list[Tensor]) -> bool:
        """Whether these are the values that were folded; of fake ones, only shapes are known."""
        if isinstance(now[0], FakeTensor):
            return True
        known = zip(self.seen, now, strict=False)
        return len(self.seen) == len(now) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in known)

    def _sources(self) -> list[Tensor]:
        norm = self.norm
        found = (self.convolution.weight, self.convolution.bias, norm.weight, norm.bias)
        return [t for t in (*found, norm.running_mean, norm.running_var) if t is not None]


class FoldedConvolution(nn.Module):
    """A convolution and the norm after it: one call in inference on the processor, else both.

    Gradients go to the weights themselves, statistics of a batch are the norm's, and compilers fold by themselves.
    Of several over the same weights, the one that runs first sees to it that they are up to date.
    """

    def __init__(self, convolution: _ConvNd, norm: _BatchNorm, weights: FoldedWeights, is_first: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.weights = convolution, norm, weights
        self.folded = shallow_copy(convolution)
        self.folded._parameters = weights._parameters  # the very table, whatever is folded anew
        self.is_first = is_first

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map of ``x``, (B, C, H, W)."""
        if not x.is_cpu or self.norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.norm(self.convolution(x))  # type: ignore[no-any-return]
        if self.is_first:
            self.weights.refresh()
        return self.folded(x)  # type: ignore[no-any-return]
