"""How near a student's image is to its teacher's from the same noise: SSIM and mean squared error.

SSIM is that of Wang et al. (2004, IEEE TIP 13(4)), equation 13, with their window: an 11x11 Gaussian of 1.5 pixels,
K1 = 0.01, K2 = 0.03, local moments weighted by the window (equations 14 to 16).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill.errors import EvaluationError
from redistill.internal.text import format_shape

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair of uint8 images [N, C, H, W]: [N], 1 where they are equal.

    It is averaged over channels and over the places where the whole window lies within the image.

    Raises:
        EvaluationError: shapes that differ, or images smaller than the window.
    """
    x, y = _pair(first, second)
    if min(x.shape[-2:]) < WINDOW:
        raise EvaluationError(f"SSIM needs images of {WINDOW}x{WINDOW} or more, these are {format_shape(x.shape[-2:])}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of each pair of uint8 images [N, C, H, W], black being 0 and white 1: [N]."""
    x, y = _pair(first, second)
    return (x - y).square().mean(dim=(1, 2, 3))


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise EvaluationError(
            f"images of {format_shape(first.shape)} and {format_shape(second.shape)} cannot be compared one by one; "
            "generate both from the same noise"
        )
    return first.double() / 255, second.double() / 255


def _blur(images: Tensor) -> Tensor:
    """The window's weighted mean around each place, without padding; separable."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(images, weights, groups=images.shape[1])
    return F.conv2d(rows, weights.transpose(2, 3), groups=images.shape[1])
