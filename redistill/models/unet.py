"""The denoiser of Ho et al. (2020, arXiv 2006.11239): a UNet that predicts the noise in an image.

Tensors are (B, C, H, W); H and W must divide by ``2 ** (levels - 1)``. The forward has no control flow that depends on
data, and lets go of each map as soon as its last reader is done, so the default model peaks at 4.502 MiB (fp32, 32x32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill.errors import ModelError

NEAR_ZERO = 1e-5
"""Gain of the last convolution of each residual branch: at the start every block is its shortcut (Ho et al.)."""


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
        h = self.project(h.transpose(1, 2).reshape(x.shape))
        return x + h


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


class DDPMUNet(nn.Module):
    """The UNet of DDPM; the defaults are its CIFAR-10 configuration (35.7 M parameters).

    ``width`` channels times ``multipliers`` give the levels' channels, ``blocks`` the residual blocks of a level on the
    way down (one more on the way up), ``attention_levels`` the levels (0 is the finest) with self-attention.
    With ``num_classes`` the model takes labels too; label ``num_classes`` is the null class of classifier-free guidance.

    Raises:
        ModelError: an argument out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention_levels: Sequence[int] = (1,),
        blocks: int = 2,
        dropout: float = 0.1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(in_channels, width, multipliers, attention_levels, blocks)
        self.in_channels, self.num_classes, self.levels = in_channels, num_classes, len(multipliers)
        channels = [width * multiplier for multiplier in multipliers]
        attention = [level in attention_levels for level in range(self.levels)]
        embedding = 4 * width
        self.head = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, embedding)
        self.label_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, embedding)
        skips = [width]
        self.downblocks = nn.ModuleList(_down(channels, attention, blocks, embedding, dropout, skips))
        deepest = channels[-1]
        self.middleblocks = nn.ModuleList(
            ResidualBlock(deepest, deepest, embedding, dropout, attention) for attention in (True, False)
        )
        self.upblocks = nn.ModuleList(_up(channels, attention, blocks, embedding, dropout, skips))
        self.tail = nn.Sequential(group_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], in_channels, 3, padding=1))
        _initialise(self)

    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict the noise in ``sample`` (B, C, H, W) at ``timestep`` (B,); ``label`` (B,) int64, null if left out.

        Raises:
            ModelError: a label given to a model without classes.
        """
        embedding = self._embed(sample, timestep, label)
        h = self.head(sample)
        skips = [h]
        for block in self.downblocks:
            h = block(h, embedding) if isinstance(block, ResidualBlock) else block(h)
            skips.append(h)
        for block in self.middleblocks:
            h = block(h, embedding)
        for block in self.upblocks:
            if isinstance(block, ResidualBlock):
                h = torch.cat([h, skips.pop()], dim=1)  # bound before the call, so that its two parts are free in it
                h = block(h, embedding)
            else:
                h = block(h)
        out: Tensor = self.tail(h)
        return out

    def _embed(self, sample: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embedding(timestep, sample)
        if self.label_embedding is None:
            if isinstance(label, Tensor):
                raise ModelError("this DDPMUNet has no classes, yet a label was given; build it with num_classes=")
            return embedding
        null = self.label_embedding.weight[-1]
        return embedding + (null if label is None else self.label_embedding(label))


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of the largest number below it that divides ``channels``."""
    return nn.GroupNorm(max(groups for groups in range(1, 33) if channels % groups == 0), channels)


def _down(
    channels: Sequence[int], attention: Sequence[bool], blocks: int, embedding: int, dropout: float, skips: list[int]
) -> Iterator[nn.Module]:
    """Blocks from the finest level to the deepest; appends to ``skips`` the channels of each output."""
    for level, out_channels in enumerate(channels):
        for _ in range(blocks):
            yield ResidualBlock(skips[-1], out_channels, embedding, dropout, attention[level])
            skips.append(out_channels)
        if level < len(channels) - 1:
            yield Downsample(out_channels)
            skips.append(out_channels)


def _up(
    channels: Sequence[int], attention: Sequence[bool], blocks: int, embedding: int, dropout: float, skips: list[int]
) -> Iterator[nn.Module]:
    """Blocks from the deepest level to the finest; takes from ``skips`` the channels of each concatenation."""
    current = channels[-1]
    for level in reversed(range(len(channels))):
        for _ in range(blocks + 1):
            yield ResidualBlock(current + skips.pop(), channels[level], embedding, dropout, attention[level])
            current = channels[level]
        if level > 0:
            yield Upsample(current)


def _initialise(model: DDPMUNet) -> None:
    """Uniform Xavier weights and zero biases; the last layer of each residual branch, and of all, near zero."""
    near_zero = {model.tail[2]}
    near_zero |= {module.conv2 for module in model.modules() if isinstance(module, ResidualBlock)}
    near_zero |= {module.project for module in model.modules() if isinstance(module, Attention)}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, gain=NEAR_ZERO if module in near_zero else 1.0)
            nn.init.zeros_(module.bias)


def _check_arguments(
    in_channels: int, width: int, multipliers: Sequence[int], attention_levels: Sequence[int], blocks: int
) -> None:
    sizes = {"in_channels": in_channels, "width": width, "blocks": blocks, "the number of multipliers": len(multipliers)}
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"DDPMUNet: {name} is {size}; give 1 or more")
    if any(multiplier < 1 for multiplier in multipliers):
        raise ModelError(f"DDPMUNet: multipliers {list(multipliers)} must all be 1 or more")
    outside = [level for level in attention_levels if not 0 <= level < len(multipliers)]
    if outside:
        raise ModelError(f"DDPMUNet: attention_levels {outside} are outside the levels 0 to {len(multipliers) - 1}")
