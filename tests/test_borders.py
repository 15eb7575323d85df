"""Borders: unpadded convolutions and crops, pads beside transposed convolutions, and images padded to a multiple."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import redistill


def centred(x, like):
    top, left = ((a - b) // 2 for a, b in zip(x.shape[2:], like.shape[2:], strict=True))
    return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]


class Unpadded(nn.Module):
    """The U-Net of 2015: no convolution is padded, and skips are cropped to what is left."""

    def __init__(self, crop):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.up, self.joined = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.Conv2d(32, 16, 3)
        self.last, self.crop = nn.Conv2d(16, 2, 1), crop

    def forward(self, x):
        skip = self.first(x).relu()
        up = self.up(self.second(F.max_pool2d(skip, 2)).relu())
        return self.last(self.joined(torch.cat([self.crop(skip, up), up], 1)).relu())


CROPS = {
    "by sizes": centred,
    "by constants": lambda x, like: x[..., 2:-2, 2:-2],
    "one by one": lambda x, like: x[..., 2:-2, :][..., 2:-2],
}


@pytest.mark.parametrize("name", CROPS)
def test_unpadded_convolutions_lose_no_more_of_the_scene_on_a_coarser_grid(name):
    x = torch.randn(1, 1, 124, 124)
    student = redistill.transform(Unpadded(CROPS[name]).eval(), x, factors=(2, 1))
    assert student(x).shape == (1, 2, 116, 116)
    assert student.profile.peak_bytes < 0.27 * student.teacher_profile.peak_bytes


class PaddedAfter(nn.Module):
    """Transposed convolutions that make one cell too few, and a pad that makes it up before the sum with the skip."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        skip = self.first(x).relu()
        up = F.pad(self.norm(self.up(self.second(skip).relu())), (1, 0, 1, 0))
        return self.last(up + skip)


class PaddedBefore(nn.Module):
    """Resampling by fixed kernels, as it is done without aliasing: a pad, a kernel, and its border thrown away."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.last = nn.Conv1d(32, 2, 3, padding=1)
        self.register_buffer("kernel", torch.tensor([1.0, 3.0, 3.0, 1.0]).repeat(16, 1, 1) / 8)

    def forward(self, x):
        skip = self.first(x).relu()
        down = F.conv1d(F.pad(skip, (1, 1), "reflect"), self.kernel, stride=2, groups=16)
        down = self.second(down).relu()
        up = F.conv_transpose1d(F.pad(down, (1, 1), "reflect"), self.kernel * 2, stride=2, padding=3, groups=16)
        return self.last(torch.cat([up, skip], 1))


@pytest.mark.parametrize("factors", [(2, 1), (2, 2), (1, 2), (4, 2)])
@pytest.mark.parametrize(("module", "shape"), [(PaddedAfter(), (1, 1, 64, 64)), (PaddedBefore(), (1, 2, 64))])
def test_pads_beside_transposed_convolutions_go_with_any_grid(module, shape, factors):
    student = redistill.transform(module.eval(), torch.randn(shape), factors=factors)
    assert student(torch.randn(shape)).shape == module(torch.randn(shape)).shape
    assert student.profile.peak_bytes < student.teacher_profile.peak_bytes or factors == (1, 2)


class ToMultiple(nn.Module):
    """Pads the image to a multiple of 8, and cuts what it yields back to the image's size."""

    def __init__(self, round_up):
        super().__init__()
        self.round_up = round_up
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[2:]
        padded = F.pad(x, (0, self.round_up(width) - width, 0, self.round_up(height) - height))
        return self.last(self.body(padded))[:, :, :height, :width]


ROUND_UP = {
    "ceil": lambda side: math.ceil(side / 8) * 8,
    "numpy": lambda side: int(np.ceil(side / 8)) * 8,
    "remainder": lambda side: side + (8 - side % 8) % 8,
    "floor of the negative": lambda side: -(-side // 8) * 8,
    "condition": lambda side: side if side % 8 == 0 else (side // 8 + 1) * 8,
}


@pytest.mark.parametrize("name", ROUND_UP)
def test_images_of_odd_sides_padded_to_a_multiple_are_pooled_at_a_mild_budget(name):
    x = torch.randn(1, 3, 61, 45)
    student = redistill.transform(ToMultiple(ROUND_UP[name]).eval(), x, budget="1.2x")
    assert student.plan.factors == (2,)
    assert student(x).shape == x.shape
