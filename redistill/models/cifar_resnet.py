"""The residual network for CIFAR (He et al., arXiv 1512.03385, section 4.2), 16, 32 and 64 channels wide.

Its shortcuts have no parameters (option A of the paper): every second row and column, and channels of zeros around.
Module names are those of the checkpoints that are in wide use, so that these load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from redistill.errors import ModelError

WIDTHS = (16, 32, 64)


class ZeroPaddedShortcut(nn.Module):
    """Every ``stride``-th row and column, with zero channels before and behind: (B, C, H, W) to (B, D, H/s, W/s)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = in_channels, stride
        before = (out_channels - in_channels) // 2
        self.channels = (before, out_channels - in_channels - before)

    def as_convolution(self) -> nn.Conv2d:
        """A 1x1 convolution of ones and zeros that gives the same, for tools that must see channels in weights."""
        before, behind = self.channels
        inner = self.width
        convolution = nn.Conv2d(inner, before + inner + behind, 1, self.stride, bias=False)
        nn.init.zeros_(convolution.weight)
        for channel in range(inner):
            nn.init.ones_(convolution.weight[before + channel, channel])
        return convolution

    def forward(self, x: Tensor) -> Tensor:
        """Thin the grid out, then widen."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, C, H, W) to (B, D, H/s, W/s)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else ZeroPaddedShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The residual added in place, as memory is the point."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class CifarResNet(nn.Module):
    """A residual network of ``6 n + 2`` layers for images (B, 3, H, W), usually of 32 px; gives (B, num_classes).

    Raises:
        ModelError: a depth that is not 6 n + 2.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width_mult: float = 1.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ModelError(f"cifar_resnet: depth {depth} is not 6 n + 2; give 8, 14, 20, 32, 44, 56 or 110")
        widths = [max(1, round(width * width_mult)) for width in WIDTHS]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _make_layer(widths[0], widths[0], 1, blocks)
        self.layer2 = _make_layer(widths[0], widths[1], 2, blocks)
        self.layer3 = _make_layer(widths[1], widths[2], 2, blocks)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _make_layer(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


CIFAR_RESNETS: dict[str, Callable[..., Any]] = {
    "cifar_resnet": CifarResNet,
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
}
"""The depths that are published, and ``cifar_resnet?depth=...`` for any other."""
