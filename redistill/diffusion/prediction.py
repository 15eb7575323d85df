"""What a denoiser predicts, and how one prediction is turned into another.

With x_t = a x_0 + s noise, a = sqrt(alpha-bar) and s = sqrt(1 - alpha-bar), a network may predict

    epsilon   the noise (Ho et al. 2020, equation 14)
    sample    the image x_0
    v         a noise - s x_0 (Salimans and Ho 2022, arXiv 2202.00512, section 4)

``scales`` below is the pair (a, s), as :meth:`redistill.diffusion.NoiseSchedule.scales` gives it, or two numbers.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from redistill.errors import ConfigError

Prediction = Literal["epsilon", "sample", "v"]
Scales: TypeAlias = tuple[Tensor, Tensor] | tuple[float, float]


def training_target(kind: Prediction, images: Tensor, noise: Tensor, scales: Scales) -> Tensor:
    """What a network of this kind is to predict, of the images' shape."""
    image_scale, noise_scale = scales
    if kind == "epsilon":
        return noise
    return images if kind == "sample" else image_scale * noise - noise_scale * images


def to_sample(kind: Prediction, predicted: Tensor, noisy: Tensor, scales: Scales) -> Tensor:
    """The image x_0 that a prediction at ``noisy`` x_t amounts to."""
    image_scale, noise_scale = scales
    if kind == "sample":
        return predicted
    if kind == "epsilon":
        return (noisy - noise_scale * predicted) / image_scale
    return image_scale * noisy - noise_scale * predicted


def to_noise(kind: Prediction, predicted: Tensor, noisy: Tensor, scales: Scales) -> Tensor:
    """The noise that a prediction at ``noisy`` x_t amounts to."""
    image_scale, noise_scale = scales
    if kind == "epsilon":
        return predicted
    if kind == "sample":
        return (noisy - image_scale * predicted) / noise_scale
    return image_scale * predicted + noise_scale * noisy


def check_prediction(kind: str) -> None:
    """Refuse a kind that is not known.

    Raises:
        ConfigError: naming the three there are.
    """
    if kind not in get_args(Prediction):
        raise ConfigError(f"prediction {kind!r} is not one of {', '.join(get_args(Prediction))}")
