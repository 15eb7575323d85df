"""DS-CNN: the depthwise separable network of keyword spotting (Zhang et al. 2017, arXiv 1711.07128)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Pair = tuple[int, int]
STRIDES: tuple[Pair, ...] = ((2, 1), (2, 2), (1, 1), (1, 1), (1, 1))
"""Of time and frequency: the stem, then each block, as in the paper's DS-CNN-M."""


class DSCNN(nn.Module):
    """Spectrograms (B, channels, time, frequency) to logits (B, num_classes).

    The stem's kernel is 9 x 5 where the paper has 10 x 4, so that grids halve without a row left over.

    Args:
        num_classes: keywords.
        width: channels of each map.
        strides: of time and frequency, the stem first; one block for each after it.
        in_channels: of the spectrogram.
    """

    def __init__(
        self, num_classes: int = 8, width: int = 64, strides: Sequence[Sequence[int]] = STRIDES, in_channels: int = 1
    ) -> None:
        super().__init__()
        stem, *others = [(down[0], down[1]) for down in strides]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, (9, 5), stem, (4, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(_separable(width, down) for down in others))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


def _separable(width: int, stride: Pair) -> nn.Sequential:
    """A depthwise convolution and a pointwise one, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )
