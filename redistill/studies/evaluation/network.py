"""The small classifier whose features stand in for Inception's where images are of another kind than photographs."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = 64


class FeatureNetwork(nn.Module):
    """Five convolutions, a global average of 64 channels (the features) and one linear layer (the logits).

    Images are (B, C, H, W) in [-1, 1], of 8 pixels a side or more.
    """

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(channels, 16, 1),
            *_block(16, 32, 2),
            *_block(32, 32, 1),
            *_block(32, FEATURES, 2),
            *_block(FEATURES, FEATURES, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        logits: Tensor = self.head(self.trunk(images))
        return logits


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
