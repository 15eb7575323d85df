"""SSIM against its equation, against scikit-image where it is installed, and by its properties."""

import numpy as np
import pytest
import torch

from redistill.errors import EvaluationError
from redistill.studies.evaluation.similarity import mse, ssim


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (3, 2, 16, 20), generator=generator, dtype=torch.uint8)
    change = torch.randint(0, 60, first.shape, generator=generator, dtype=torch.uint8)
    return first, (first // 2 + change).to(torch.uint8)


def by_the_equation(x, y):
    """Wang et al., equations 13 to 16, place by place."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            near = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            values.append(near / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(values)


def test_ssim_is_that_of_the_equation(pairs):
    first, second = (images.double().numpy() for images in pairs)
    expected = [
        np.mean([by_the_equation(x, y) for x, y in zip(a, b, strict=True)]) for a, b in zip(first, second, strict=True)
    ]
    assert ssim(*pairs).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_is_that_of_scikit_image(pairs):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"data_range": 255, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    for x, y, value in zip(*pairs, ssim(*pairs), strict=True):
        _, places = metrics.structural_similarity(
            x.numpy(), y.numpy(), use_sample_covariance=False, full=True, **options
        )
        assert value.item() == pytest.approx(places[:, 5:-5, 5:-5].mean(), abs=1e-7)


def test_properties(pairs):
    first, second = pairs
    assert ssim(first, first).tolist() == pytest.approx([1.0] * 3)
    assert mse(first, first).tolist() == [0.0] * 3
    assert torch.equal(ssim(first, second), ssim(second, first))
    assert ((ssim(first, second) > -1) & (ssim(first, second) < 1)).all()
    assert ssim(first, 255 - first).max() < 0
    black, white = torch.zeros(1, 1, 16, 16, dtype=torch.uint8), torch.full((1, 1, 16, 16), 255, dtype=torch.uint8)
    assert mse(black, white).item() == 1
    assert ssim(black, white).item() == pytest.approx(0.0001 / 1.0001)


def test_what_cannot_be_compared_is_refused(pairs):
    first, second = pairs
    with pytest.raises(EvaluationError, match="from the same noise"):
        ssim(first, second[:2])
    with pytest.raises(EvaluationError, match="11x11"):
        ssim(first[..., :10], second[..., :10])
