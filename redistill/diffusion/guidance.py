"""Calling a denoiser while sampling: one timestep for all images, labels, classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.errors import ConfigError, ModelError
from redistill.internal.text import format_shape

Denoiser = Callable[..., Tensor]
"""model(x, t) or model(x, t, labels), with x [N, C, H, W], t [N] and labels [N] int64; gives [N, C, H, W]."""


@dataclass(frozen=True)
class GuidedDenoiser:
    """A denoiser with its labels and its guidance.

    With weight w the prediction is e + w (e - e_null), where e_null is made without a label (Ho and Salimans 2022,
    arXiv 2207.12598, equation 6). Since noise is linear in any kind of prediction, e may be of each kind.

    Attributes:
        labels: class indices [N], or none.
        weight: w; 0 asks for the label's prediction only.
        null_label: the label that stands for none; without it the model is called with two inputs.
    """

    model: Denoiser
    labels: Tensor | None = None
    weight: float = 0.0
    null_label: int | None = None

    def __post_init__(self) -> None:
        if self.weight and self.labels is None:
            raise ConfigError(f"guidance={self.weight} needs labels; give labels [N] of a class-conditional model")

    def __call__(self, noisy: Tensor, timestep: int) -> Tensor:
        """The prediction at ``noisy`` [N, C, H, W]."""
        times = torch.full((len(noisy),), timestep, dtype=torch.long, device=noisy.device)
        if self.labels is None:
            return self._call(noisy, times)
        labels = self.labels.to(noisy.device)
        predicted = self._call(noisy, times, labels)
        if not self.weight:
            return predicted
        null = () if self.null_label is None else (torch.full_like(labels, self.null_label),)
        return predicted + self.weight * (predicted - self._call(noisy, times, *null))

    def _call(self, noisy: Tensor, *inputs: Tensor) -> Tensor:
        predicted = self.model(noisy, *inputs)
        if not isinstance(predicted, Tensor) or predicted.shape != noisy.shape:
            got = format_shape(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            raise ModelError(
                f"the denoiser gives {got} for an image of {format_shape(noisy.shape)}; it must return a tensor of the "
                "image's shape (a diffusers model does so as diffusers:CLASS)"
            )
        return predicted
