"""What the examples share: scikit-learn's handwritten digits at 16x16 pixels, a small network, and a few steps."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1397, 1, 16, 16] and labels, then 400 test images and labels."""
    images, labels = (torch.from_numpy(values) for values in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(images.float().view(-1, 1, 8, 8) / 8 - 1, scale_factor=2.0, mode="bilinear")[order]
    return images[400:], labels[order][400:], images[:400], labels[order][:400]


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def network() -> nn.Sequential:
    """Four grids of 16x16 to 2x2 and about 25,000 parameters."""
    torch.manual_seed(0)
    blocks = [block(1, 16, 1), block(16, 24, 2), block(24, 32, 2), block(32, 48, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int = 4) -> nn.Module:
    """Train with cross-entropy, and return the network in evaluation mode."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, in percent."""
    return 100 * (net.eval()(images).argmax(1) == labels).float().mean().item()
