"""The denoiser of Ho et al. (2020, arXiv 2006.11239): a UNet that predicts the noise in an image.

Tensors are (B, C, H, W); H and W must divide by ``2 ** (levels - 1)``. The forward has no control flow that depends on
data, and lets go of each map as soon as its last reader is done, so the default model peaks at 4.502 MiB (fp32, 32x32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.models.blocks import Attention, Downsample, ResidualBlock, TimeEmbedding, Upsample, group_norm

NEAR_ZERO = 1e-5
"""Gain of the last convolution of each residual branch: at the start every block is its shortcut (Ho et al.)."""


class DDPMUNet(nn.Module):
    """The UNet of DDPM; the defaults are its CIFAR-10 configuration (35.7 M parameters).

    ``width`` channels times ``multipliers`` give the levels' channels, ``blocks`` the residual blocks of a level on the
    way down (one more on the way up), ``attention_levels`` the levels (0 is the finest) with self-attention.
    With ``num_classes`` the model takes labels too; label ``num_classes`` is the null class of classifier-free
    guidance.

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
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_arguments(
    in_channels: int, width: int, multipliers: Sequence[int], attention_levels: Sequence[int], blocks: int
) -> None:
    sizes = {
        "in_channels": in_channels,
        "width": width,
        "blocks": blocks,
        "the number of multipliers": len(multipliers),
    }
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"DDPMUNet: {name} is {size}; give 1 or more")
    if any(multiplier < 1 for multiplier in multipliers):
        raise ModelError(f"DDPMUNet: multipliers {list(multipliers)} must all be 1 or more")
    outside = [level for level in attention_levels if not 0 <= level < len(multipliers)]
    if outside:
        raise ModelError(f"DDPMUNet: attention_levels {outside} are outside the levels 0 to {len(multipliers) - 1}")
