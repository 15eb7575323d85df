"""What users would do otherwise to need less memory: a smaller image, or a narrower network, at the same peak.

Both keep the teacher's weights as far as they can, and both are trained as the pooled student is, so that a comparison
at equal peak and equal training is fair.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import redistill
from redistill.budget import parse_budget
from redistill.errors import ConfigError, InfeasibleBudgetError
from redistill.internal.text import format_bytes

STEPS = 64
"""Widths are tried in steps of this share of the whole."""


class SmallerInput(nn.Module):
    """A network on its images averaged to ``side`` x ``side`` pixels, (B, C, H, W) to whatever the network gives."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network = network
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Average areas, then run the network."""
        output: Tensor = self.network(F.adaptive_avg_pool2d(images, self.side))
        return output


def resize(network: nn.Module, example: tuple[Tensor, ...], budget: str, convention: str) -> nn.Module:
    """The network on the largest image whose peak fits the budget.

    Raises:
        InfeasibleBudgetError: none does.
    """
    whole = example[0].shape[-1]
    sides = range(whole - 1, 0, -1)
    return _first_that_fits(
        "a smaller image", network, example, budget, convention, sides, lambda copied, side: SmallerInput(copied, side)
    )


def prune(network: nn.Module, example: tuple[Tensor, ...], budget: str, convention: str) -> nn.Module:
    """The network with all layers narrowed by one ratio, the channels of least weight away, the widest that fits.

    By Torch-Pruning (Fang et al., arXiv 2301.12900): magnitudes of coupled channels together, L2.

    Raises:
        ConfigError: Torch-Pruning is not installed.
        InfeasibleBudgetError: no width fits.
    """
    widths = range(STEPS - 1, 0, -1)
    return _first_that_fits(
        "a narrower network", network, example, budget, convention, widths,
        lambda copied, width: _narrow(copied, example, 1 - width / STEPS),
    )  # fmt: skip


Make = Callable[[nn.Module, int], nn.Module]


def _first_that_fits(
    name: str,
    network: nn.Module,
    example: tuple[Tensor, ...],
    budget: str,
    convention: str,
    sizes: Sequence[int],
    make: Make,
) -> nn.Module:
    """The first of falling sizes whose peak is within the budget, found by bisection: peaks fall with the size."""
    whole = redistill.profile(network, example, convention).peak_bytes
    limit = parse_budget(budget).limit(whole)
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        made = make(copy.deepcopy(network), sizes[middle])
        fits = redistill.profile(made, example, convention).peak_bytes <= limit
        low, high = (low, middle) if fits else (middle + 1, high)
    if low == len(sizes):
        raise InfeasibleBudgetError(f"{name} cannot reach {format_bytes(limit)} of {format_bytes(whole)}")
    return make(copy.deepcopy(network), sizes[low]).eval()


def _narrow(network: nn.Module, example: tuple[Tensor, ...], ratio: float) -> nn.Module:
    try:
        pruning: Any = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ConfigError("student.lever=prune needs Torch-Pruning; pip install redistill[pruning]") from error
    _open_shortcuts(network)
    with torch.enable_grad():
        pruning.pruner.BasePruner(
            network,
            example,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=list(_last_layers(network)),
        ).step()
    return network


def _open_shortcuts(network: nn.Module) -> None:
    """Put convolutions of equal output in the place of shortcuts that have no parameters, which can be narrowed."""
    for path, module in list(network.named_modules()):
        as_convolution = getattr(module, "as_convolution", None)
        if callable(as_convolution):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, as_convolution())


def _last_layers(network: nn.Module) -> Sequence[nn.Module]:
    """The layers that name the classes, which stay as they are."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]


LEVERS: Mapping[str, Callable[[nn.Module, tuple[Tensor, ...], str, str], nn.Module]] = {
    "resize": resize,
    "prune": prune,
}
"""Other ways to fit a budget than pooling, by name."""
