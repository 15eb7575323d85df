"""How much noise an image holds at each timestep.

The forward process of Ho et al. (2020, arXiv 2006.11239), equation 4: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, where
a_t is the product of 1 - beta_s over s up to t, written alpha-bar there. Timesteps count from 0 to ``steps`` - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from redistill.errors import ConfigError

OFFSET = 0.008
"""Keeps the first betas of the cosine schedule from being too small (Nichol and Dhariwal, section 3.2)."""
LARGEST_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule of noise.

    Attributes:
        name: ``linear`` betas (Ho et al. 2020, section 4), or the ``cosine`` of Nichol and Dhariwal (2021, arXiv
            2102.09672, equation 17).
        steps: the number of timesteps T.
        first_beta: beta of the first timestep, for ``linear``.
        last_beta: beta of the last timestep, for ``linear``; the two fit T = 1000.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """

    name: Literal["linear", "cosine"] = "linear"
    steps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02

    def __post_init__(self) -> None:
        if self.name not in ("linear", "cosine"):
            raise ConfigError(f"noise schedule {self.name!r} is not one of linear, cosine")
        if self.steps < 1:
            raise ConfigError(f"noise schedule: steps={self.steps} must be 1 or more")
        if not 0 < self.first_beta <= self.last_beta < 1:
            raise ConfigError(
                f"noise schedule: betas from {self.first_beta} to {self.last_beta}; they must rise between 0 and 1"
            )

    @cached_property
    def betas(self) -> Tensor:
        """Variance of the noise that each timestep adds, [T] float64."""
        if self.name == "linear":
            return torch.linspace(self.first_beta, self.last_beta, self.steps, dtype=torch.float64)
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        remaining = ((time + OFFSET) / (1 + OFFSET) * math.pi / 2).cos().square()
        return (1 - remaining[1:] / remaining[:-1]).clamp_max(LARGEST_BETA)

    @cached_property
    def alpha_bars(self) -> Tensor:
        """Share of the image's variance that is left at each timestep, [T] float64."""
        return (1 - self.betas).cumprod(0)

    def alpha_bar(self, timestep: int) -> float:
        """The share left at one timestep; before the first one, at -1, the image is whole."""
        return float(self.alpha_bars[timestep]) if timestep >= 0 else 1.0

    def scales(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) of the image and sqrt(1 - a_t) of the noise at ``timestep`` (B,).

        Both are (B, 1, ..., 1) of the dimensions, dtype and device of ``like``; roots are taken in float64.
        """
        shape = (-1, *[1] * (like.dim() - 1))
        tables = (self.alpha_bars.sqrt(), (1 - self.alpha_bars).sqrt())
        image, noise = (table.to(like.dtype).to(like.device)[timestep.to(like.device)] for table in tables)
        return image.view(shape), noise.view(shape)

    def add_noise(self, images: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t (B, C, H, W) of images x_0 in [-1, 1] and unit noise, at ``timestep`` (B,) (Ho et al., equation 4)."""
        image_scale, noise_scale = self.scales(timestep, images)
        return image_scale * images + noise_scale * noise
