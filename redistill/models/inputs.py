"""Example inputs: what shape a model takes, and tensors of it, the same ones at each call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.internal.text import format_shape
from redistill.models.cifar_resnet import CIFAR_RESNETS
from redistill.models.specs import ModelSpec, parse_spec
from redistill.models.unet import DDPMUNet
from redistill.models.wrappers import AutoencoderOutput, ConditionalDenoiserOutput, DenoiserOutput

Shape = tuple[int, ...]

_TIMESTEPS = 1000
_TEXT_TOKENS = 77
_SIDE_KEYWORDS = ("img_size", "image_size", "sample_size")
_SIDES = {
    "torchvision:inception_v3": 299,
    "redistill:ddpm_unet": 32,
    "redistill:ds_cnn": 32,
    **{f"redistill:{name}": 32 for name in CIFAR_RESNETS},
    "redistill:mobilenet_v2_strided": 128,
    "redistill:mobilenet_v3_small_strided": 128,
    "redistill:resnext18": 128,
}
_DEFAULT_SIDE = 224


def parse_shape(text: str) -> Shape:
    """Read ``3x224x224`` (or ``1x3x224x224``, batch first) as sizes.

    Raises:
        ModelError: anything else.

    Example:
        >>> parse_shape("3x224x224")
        (3, 224, 224)
    """
    parts = re.split(r"[xX×]", text.strip())
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part.strip(), re.ASCII) for part in parts):
        raise ModelError(f"cannot read input shape {text!r}; write channels x height x width, for example 3x224x224")
    return tuple(int(part) for part in parts)


def default_input_shapes(spec: str, model: nn.Module) -> tuple[Shape, ...]:
    """Shapes (C, H, W), without batch, of the images that ``model`` takes; a timestep or label is not among them.

    Raises:
        ModelError: a model whose input cannot be told from its spec and first convolution.
    """
    parsed = parse_spec(spec)
    convolution = _first_convolution(model)
    if not isinstance(convolution, nn.Conv2d):
        raise ModelError(f"the input of {parsed.target} is not known; give its shape, for example 3x224x224")
    channels = _image_channels(parsed, model) or convolution.in_channels
    return ((channels, *_default_sides(parsed, model)),)


def _default_sides(spec: ModelSpec, model: Any) -> Shape:
    """Height and width: what the spec's keywords say, then the model's own configuration, then its kind's habit."""
    candidates = [spec.arguments.get(keyword) for keyword in _SIDE_KEYWORDS]
    if spec.provider == "timm":
        candidates.append(model.pretrained_cfg.get("input_size"))
    if spec.provider == "transformers":
        candidates.append(getattr(model.config, "image_size", None))
    if spec.provider == "diffusers":
        candidates.append(getattr(model, "model", model).config.get("sample_size"))
    candidates += [_SIDES.get(spec.target), _DEFAULT_SIDE]
    side = next(candidate for candidate in candidates if candidate)
    return tuple(side)[-2:] if isinstance(side, Sequence) else (side, side)


def example_inputs(
    spec: str,
    model: nn.Module,
    shapes: Sequence[Shape] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Inputs for ``model``, normally distributed, the same at each call.

    ``shapes`` are of the images, (C, H, W) or (B, C, H, W), and default to ``default_input_shapes``. A denoiser gets a
    timestep (B,) int64 too; a ``DDPMUNet`` with classes a label (B,) int64; one with cross-attention text states.
    The first image is checked against the model, unless it comes from ``package.module:function``.

    Raises:
        ModelError: a shape that the model cannot take, or a batch below 1.

    Example:
        >>> from redistill.models import load_model
        >>> model = load_model("redistill:cifar_resnet", "random")
        >>> [tuple(x.shape) for x in example_inputs("redistill:cifar_resnet", model, batch=2)]
        [(2, 3, 32, 32)]
    """
    if batch < 1:
        raise ModelError(f"batch is {batch}; give 1 or more")
    parsed = parse_spec(spec)
    rank = _image_rank(model)
    full = [
        tuple(shape) if len(shape) == rank + 1 else (batch, *shape)
        for shape in shapes or default_input_shapes(spec, model)
    ]
    if not parsed.imported:
        _check_shapes(parsed, model, full)
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.randn(shape, generator=generator).to(dtype) for shape in full)
    return images + tuple(_conditions(model, full[0][0], dtype, generator))


def _conditions(model: nn.Module, batch: int, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Tensor]:
    """What a denoiser takes beside the image, in the order of its forward."""
    if isinstance(model, (DDPMUNet, DenoiserOutput, ConditionalDenoiserOutput)):
        yield torch.randint(_TIMESTEPS, (batch,), generator=generator)
    if isinstance(model, DDPMUNet) and model.num_classes is not None:
        yield torch.randint(model.num_classes, (batch,), generator=generator)
    if isinstance(model, ConditionalDenoiserOutput):
        channels = _text_channels(model.model)
        yield torch.randn(batch, _TEXT_TOKENS, channels, generator=generator).to(dtype)


def _text_channels(model: Any) -> int:
    channels: int | Sequence[int] = model.config["cross_attention_dim"]
    return channels if isinstance(channels, int) else channels[0]


def _check_shapes(spec: ModelSpec, model: nn.Module, shapes: Sequence[Shape]) -> None:
    """Check the first image's dimensions, channels and sides."""
    one_image = isinstance(model, (DDPMUNet, AutoencoderOutput, DenoiserOutput, ConditionalDenoiserOutput))
    if one_image and len(shapes) != 1:
        raise ModelError(f"{spec.target} takes one image, {len(shapes)} shapes were given; give one")
    image, rank = shapes[0][1:], _image_rank(model)
    refusal = f"{spec.target} cannot take input {format_shape(image)}"
    if len(image) != rank:
        raise ModelError(f"{refusal}; it takes {rank} sizes, channels first, and a batch before them if you like")
    channels = _image_channels(spec, model)
    if channels is not None and image[0] != channels:
        raise ModelError(f"{refusal}; it takes {channels} channels: give {format_shape((channels, *image[1:]))}")
    divisor = 2 ** (model.levels - 1) if isinstance(model, DDPMUNet) else 1
    if any(side % divisor for side in image[1:]):
        raise ModelError(f"{refusal}; its sides must divide by {divisor}")


def _image_channels(spec: ModelSpec, model: Any) -> int | None:
    """Channels of the image; timm says them itself, since some of its models fold space into channels first."""
    channels: int | None = None
    if spec.provider == "timm":
        channels = spec.arguments.get("in_chans") or model.pretrained_cfg.get("input_size", (None,))[0]
    elif not spec.imported:
        convolution = _first_convolution(model)
        channels = None if convolution is None else convolution.in_channels
    return channels


def _image_rank(model: nn.Module) -> int:
    """Dimensions of one image: channels, and what the first convolution slides over (two where there is none)."""
    convolution = _first_convolution(model)
    return 3 if convolution is None else 1 + len(convolution.kernel_size)


def _first_convolution(model: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | None:
    """The convolution that is registered first: in torchvision's, diffusers' and our models the one on the image."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((module for module in model.modules() if isinstance(module, kinds)), None)
