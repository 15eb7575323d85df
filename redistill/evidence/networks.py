"""The networks that the evidence is gathered on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn

from redistill.models import default_input_shapes, example_inputs, load_model

EXACT = (
    *(f"torchvision:{name}" for name in (
        "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1",
        "vgg16", "googlenet", "shufflenet_v2_x1_0", "convnext_tiny", "regnet_y_400mf", "resnext50_32x4d",
        "fcn_resnet50", "deeplabv3_mobilenet_v3_large",
    )),
    "timm:hrnet_w18_small",
    "diffusers:UNet2DModel?sample_size=32&block_out_channels=[128,256,256,256]"
    "&down_block_types=[DownBlock2D,AttnDownBlock2D,DownBlock2D,DownBlock2D]"
    "&up_block_types=[UpBlock2D,UpBlock2D,AttnUpBlock2D,UpBlock2D]",
    "redistill:ddpm_unet",
)  # fmt: skip


def build(spec: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model with random weights and its example inputs; ``backbone:NAME`` is that of a torchvision detector."""
    torch.manual_seed(0)
    if spec.startswith("backbone:"):
        detector = torchvision.models.get_model(spec.removeprefix("backbone:"), weights=None, weights_backbone=None)
        backbone = detector.backbone
        assert isinstance(backbone, nn.Module)
        side = next((int(s) for s in ("300", "320") if s in spec), 224)
        return backbone.eval(), (torch.randn(1, 3, side, side),)
    model = load_model(spec, "random")
    return model, example_inputs(spec, model, default_input_shapes(spec, model))


def short(spec: str) -> str:
    """The spec without provider and arguments."""
    return spec.removeprefix("torchvision:").partition("?")[0]


def torchvision_specs() -> Iterator[str]:
    """Every torchvision classification and segmentation model and every detection backbone."""
    for name in torchvision.models.list_models():
        module = inspect.getmodule(torchvision.models.get_model_builder(name))
        family = module.__name__ if module else ""
        if ".quantization" in family or ".video" in family or ".optical_flow" in family:
            continue
        yield f"backbone:{name}" if ".detection" in family else f"torchvision:{name}"
