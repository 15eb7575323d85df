"""Weight normalisation: a weight that is a length times a direction is fitted as a plain one, and taken apart again.

Whatever is solved for has a length and a direction (Salimans & Kingma 2016, arXiv 1602.07868), so nothing is lost. A
spectral norm is no such form: it holds each weight to a length of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from redistill.tracing.copying import with_plain_weights
from redistill.tracing.operators import modules_of


@contextmanager
def plain_weights(network: GraphModule, write: bool) -> Iterator[None]:
    """Let layers with weight normalisation hold plain weights for a while; what becomes of these is kept, or not.

    Args:
        network: its layers are exchanged, and put back.
        write: whether what the plain weights are in the end becomes lengths and directions.
    """
    paths = {path: module for path, module in modules_of(network).items() if _is_normalised(module)}
    plain = {module: with_plain_weights(module) for module in paths.values()}
    for path, module in paths.items():
        network.set_submodule(path, plain[module])
    try:
        yield
    finally:
        for path, module in paths.items():
            network.set_submodule(path, module)
        if write:
            for module, fitted in plain.items():
                _write(module, fitted.get_parameter("weight").detach())


def _is_normalised(module: nn.Module) -> bool:
    if is_parametrized(module, "weight"):
        kinds = {name: [type(p) for p in found] for name, found in module.parametrizations.items()}  # type: ignore[operator, union-attr]
        return kinds == {"weight": [_WeightNorm]}
    return _hook(module) is not None and len(module._forward_pre_hooks) == 1


def _hook(module: nn.Module) -> WeightNorm | None:
    hooks = (h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm) and h.name == "weight")
    return next(hooks, None)


@torch.no_grad()
def _write(module: nn.Module, weight: Tensor) -> None:
    hook = _hook(module)
    if hook is None:
        module.weight = weight  # its parametrization takes it apart
        return
    module.get_parameter("weight_v").copy_(weight)
    module.get_parameter("weight_g").copy_(torch.norm_except_dim(weight, 2, hook.dim))
