"""From a spec to a module that is ready to run."""

from __future__ import annotations

import os

from torch import nn

from redistill.models.providers import build_model
from redistill.models.specs import parse_spec
from redistill.models.weights import choose_weights, load_weights


def load_model(spec: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Build the model of ``spec``, load its weights, and return it in eval mode, on the CPU.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``diffusers:CLASS``, ``redistill:NAME`` or
            ``package.module:function``, with ``?keyword=value&keyword=value`` for the builder.
        weights: None for torchvision's checkpoint where it lies in torch.hub's folder already, else random
            initialisation, so nothing is ever fetched; ``"random"``; ``"pretrained"`` for the provider's own (this may
            fetch them); or the path of a ``.safetensors`` or torch file, with ``?key=NAME`` where it holds several.

    Raises:
        ModelError: a spec, package, keyword or file that cannot be used; the message is one line with the remedy.

    Example:
        >>> load_model("torchvision:mobilenet_v2?num_classes=10&width_mult=0.35", "random").classifier[1].out_features
        10
    """
    parsed = parse_spec(spec)
    source = choose_weights(parsed, weights)
    model = build_model(parsed, source.pretrained)
    if source.path is not None:
        load_weights(model, source.path, parsed.target, source.key)
    return model.eval()


def find_weights(spec: str, weights: str | os.PathLike[str] | None = None) -> str:
    """Say what ``load_model`` would load: ``random initialisation``, a path, ``torchvision IMAGENET1K_V1 (cached)``.

    Raises:
        ModelError: as ``load_model``, where the source of the weights cannot be decided.

    Example:
        >>> find_weights("torchvision:resnet18", "random")
        'random initialisation'
    """
    return choose_weights(parse_spec(spec), weights).label
