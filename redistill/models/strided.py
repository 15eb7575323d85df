"""The paper's classifiers with their strides as an argument, on torchvision's own classes.

The paper (Chen et al., TMLR 2025, arXiv 2406.03744) names a network by its strides: ``mobilenetv2-1-1222121`` is a stem
of stride 1 and seven stages. Strides here are one list, the stem first. All take images (B, 3, H, W) and give
logits (B, num_classes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torchvision.models import MobileNetV2, MobileNetV3, ResNet, resnet18, resnet50
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

from redistill.errors import ModelError

MOBILENET_V2_STRIDES = (1, 1, 2, 2, 2, 1, 2, 1)
MOBILENET_V3_SMALL_STRIDES = (1, 2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1)
RESNEXT18_STRIDES = (1, 2, 1, 2, 2, 2)
RESNET_STRIDES = (2, 2, 1, 2, 2, 2)

# MobileNetV2 (Sandler et al. 2018), table 2: expansion, channels, repeats of each stage.
_MOBILENET_V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))

# MobileNetV3-small (Howard et al. 2019), table 2: in, kernel, expanded, out channels, squeeze-excite, activation.
_MOBILENET_V3_SMALL_BLOCKS = (
    (16, 3, 16, 16, True, "RE"),
    (16, 3, 72, 24, False, "RE"),
    (24, 3, 88, 24, False, "RE"),
    (24, 5, 96, 40, True, "HS"),
    (40, 5, 240, 40, True, "HS"),
    (40, 5, 240, 40, True, "HS"),
    (40, 5, 120, 48, True, "HS"),
    (48, 5, 144, 48, True, "HS"),
    (48, 5, 288, 96, True, "HS"),
    (96, 5, 576, 96, True, "HS"),
    (96, 5, 576, 96, True, "HS"),
)


class GroupedBasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """A basic residual block whose second 3x3 convolution has 32 groups: the block of ResNeXt18."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, groups=32, bias=False)


def mobilenet_v2_strided(
    strides: Sequence[int] = MOBILENET_V2_STRIDES, num_classes: int = 1000, **kwargs: Any
) -> nn.Module:
    """MobileNetV2 with ``strides`` of the stem and the seven stages.

    Raises:
        ModelError: not eight strides of 1 or more.
    """
    stem, *stages = _check_strides("mobilenet_v2_strided", strides, len(MOBILENET_V2_STRIDES))
    setting = [[*stage, stride] for stage, stride in zip(_MOBILENET_V2_STAGES, stages, strict=True)]
    model: nn.Module = MobileNetV2(num_classes=num_classes, inverted_residual_setting=setting, **kwargs)
    _set_stride(model, "features.0.0", stem)
    return model


def mobilenet_v3_small_strided(
    strides: Sequence[int] = MOBILENET_V3_SMALL_STRIDES, num_classes: int = 1000, **kwargs: Any
) -> nn.Module:
    """MobileNetV3-small with ``strides`` of the stem and the eleven blocks.

    Raises:
        ModelError: not twelve strides of 1 or more.
    """
    stem, *blocks = _check_strides("mobilenet_v3_small_strided", strides, len(MOBILENET_V3_SMALL_STRIDES))
    setting = [
        InvertedResidualConfig(*block, stride, dilation=1, width_mult=1.0)
        for block, stride in zip(_MOBILENET_V3_SMALL_BLOCKS, blocks, strict=True)
    ]
    model: nn.Module = MobileNetV3(setting, last_channel=1024, num_classes=num_classes, **kwargs)
    _set_stride(model, "features.0.0", stem)
    return model


def resnext18(strides: Sequence[int] = RESNEXT18_STRIDES, num_classes: int = 1000) -> nn.Module:
    """A ResNet18 of ``GroupedBasicBlock``; ``strides`` of conv1, maxpool, layer1 to layer4.

    Raises:
        ModelError: not six strides of 1 or more, or one of layer1 that its first block cannot take.
    """
    return _strided_resnet("resnext18", ResNet(GroupedBasicBlock, [2, 2, 2, 2], num_classes=num_classes), strides)


def resnet18_strided(strides: Sequence[int] = RESNET_STRIDES, num_classes: int = 1000) -> nn.Module:
    """torchvision's ResNet18 with ``strides`` of conv1, maxpool, layer1 to layer4; errors as for ``resnext18``."""
    return _strided_resnet("resnet18_strided", resnet18(num_classes=num_classes), strides)


def resnet50_strided(strides: Sequence[int] = RESNET_STRIDES, num_classes: int = 1000) -> nn.Module:
    """torchvision's ResNet50 with ``strides`` of conv1, maxpool, layer1 to layer4; errors as for ``resnext18``."""
    return _strided_resnet("resnet50_strided", resnet50(num_classes=num_classes), strides)


STRIDED_MODELS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (mobilenet_v2_strided, mobilenet_v3_small_strided, resnext18, resnet18_strided, resnet50_strided)
}


def _strided_resnet(name: str, model: nn.Module, strides: Sequence[int]) -> nn.Module:
    stem, maxpool, *layers = _check_strides(name, strides, len(RESNET_STRIDES))
    _set_stride(model, "conv1", stem)
    model.get_submodule("maxpool").stride = maxpool  # type: ignore[assignment]  # a pooling layer's attribute
    for number, stride in enumerate(layers, start=1):
        first: Any = model.get_submodule(f"layer{number}.0")
        if first.downsample is not None:
            _set_stride(first, "downsample.0", stride)
        elif stride != 1:
            raise ModelError(f"{name}: layer{number} has no shortcut convolution, its stride must be 1, not {stride}")
        _set_stride(first, "conv1" if isinstance(first, BasicBlock) else "conv2", stride)
    return model


def _set_stride(model: nn.Module, path: str, stride: int) -> None:
    model.get_submodule(path).stride = (stride, stride)  # type: ignore[assignment]  # a convolution's attribute


def _check_strides(name: str, strides: Sequence[int], count: int) -> list[int]:
    if len(strides) != count or any(not isinstance(stride, int) or stride < 1 for stride in strides):
        raise ModelError(f"{name}: strides {list(strides)} must be {count} whole numbers of 1 or more, the stem first")
    return list(strides)
