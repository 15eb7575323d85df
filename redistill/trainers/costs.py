"""What a student costs where it runs: memory, arithmetic, weights and time."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import redistill
from redistill.errors import RedistillError

WARM_UP, RUNS = 10, 50


def measure_costs(network: nn.Module, example: tuple[Tensor, ...], convention: str) -> dict[str, Any]:
    """Peak bytes under the convention and as metered, MACs, parameters, and the median latency in milliseconds.

    Of one image, on the CPU, in eager mode; what would need a graph is left out where there is none.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    example = tuple(value.cpu() for value in example)
    costs: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "metered_bytes": redistill.measure(network, example),
        "latency_ms": measure_latency(network, example),
        "threads": torch.get_num_threads(),
    }
    try:
        profile = redistill.profile(network, example, convention)
    except RedistillError:
        return costs
    return {**costs, "peak_bytes": profile.peak_bytes, "convention": convention, "macs": profile.macs}


@torch.no_grad()
def measure_latency(network: nn.Module, example: tuple[Tensor, ...]) -> float:
    """Median milliseconds of a call."""
    seconds = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        network(*example)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[WARM_UP:])
