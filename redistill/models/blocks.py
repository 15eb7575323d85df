"""The parts of the DDPM UNet: time embedding, residual block, attention, and the changes of resolution.

Maps are (B, C, H, W); the time embedding is (B, E).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Timesteps (B,) to (B, channels) sines then cosines, computed, so that no table is stored.

    The buffer holds whole numbers: a model cast to half precision keeps its frequencies exact.
    """

    index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", torch.arange(channels // 2), persistent=False)

    def forward(self, timestep: Tensor, like: Tensor) -> Tensor:
        """Embed ``timestep`` (B,) in float32 and return it in the dtype of ``like``."""
        frequencies = torch.exp(self.index * (-math.log(10_000.0) / max(self.channels // 2, 1)))
        angles = timestep[:, None] * frequencies[None, :]
        embedding = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, self.channels % 2))
        return embedding.type_as(like)


class TimeEmbedding(nn.Module):
    """Timesteps (B,) to (B, embedding_channels): sinusoids, then two linear layers with SiLU between."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.sinusoid = SinusoidalEmbedding(channels)
        self.hidden = nn.Linear(channels, embedding_channels)
        self.output = nn.Linear(embedding_channels, embedding_channels)

    def forward(self, timestep: Tensor, like: Tensor) -> Tensor:
        """Embed ``timestep`` (B,) in the dtype of ``like``."""
        embedding: Tensor = self.output(F.silu(self.hidden(self.sinusoid(timestep, like))))
        return embedding


class Attention(nn.Module):
    """Self-attention with one head over the H*W positions of a map, added to it: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over positions, each a token of C channels."""
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.project(h.transpose(1, 2).reshape(x.shape))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between them, a shortcut, and attention after it where asked."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(embedding, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` (B, in_channels, H, W), ``embedding`` (B, E) to (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_projection(F.silu(embedding))[:, :, None, None]
        h = F.silu(self.norm2(h))  # one name all along: the map before it is free while the next one is made
        h = self.conv2(self.dropout(h))
        h = self.shortcut(x) + h
        out: Tensor = self.attention(h)
        return out


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (B, C, H, W) to (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of ``x``."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Nearest upsampling by two, then a 3x3 convolution: (B, C, H, W) to (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides of ``x``."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of the largest number below it that divides ``channels`` into groups of four or more.

    A group of one channel would take away that channel's mean, and with it the time embedding added just before.
    """
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(max(groups for groups in range(1, most + 1) if channels % groups == 0), channels)
