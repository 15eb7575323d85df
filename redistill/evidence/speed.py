"""Speed: where the time of a transformation goes, and how it grows with the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

from torch import Tensor, nn
from tqdm import tqdm

from redistill import transform
from redistill.evidence.networks import build, short
from redistill.internal.tables import Table
from redistill.memory.conventions import DEPLOY
from redistill.memory.profiling import profile_record
from redistill.planning.crossings import find_crossings
from redistill.planning.objectives import keep_most_macs
from redistill.planning.partition import find_stages
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import solve
from redistill.tracing.capture import capture

NETWORKS = tuple(
    f"torchvision:{name}"
    for name in ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "efficientnet_b7", "densenet201")
)
Result = TypeVar("Result")


def run(repeats: int = 3) -> Table:
    """Median milliseconds of each step after a warm-up; ``total`` is ``transform`` at 4x, verification included."""
    table = Table(("network", "nodes", "stages", "trace+check", "stages+record", "profile", "search", "total"))
    for spec in tqdm(NETWORKS, unit="network", leave=False):
        model, inputs = build(spec)
        times = [measure_once(model, inputs) for _ in range(repeats + 1)][1:]
        nodes, stages = times[0][:2]
        table.add(short(spec), nodes, stages, *(f"{median(t[i] for t in times):.0f} ms" for i in range(2, 7)))
    return table


def measure_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, int, float, float, float, float, float]:
    """Number of nodes and stages, and the milliseconds of each step."""
    trace, captured = clock(lambda: capture(model, inputs))
    partition, stages = clock(lambda: find_stages(captured.graph_module, inputs))
    profiling, profile = clock(lambda: profile_record(stages.record, DEPLOY))
    scaling = ScalingModel(stages, DEPLOY, candidate_factors(stages))
    problem = scaling.problem(find_crossings(captured.graph_module, stages))
    search, _ = clock(lambda: solve(problem, profile.peak_bytes / 4, keep_most_macs()))
    total, _ = clock(lambda: transform(model, inputs, "4x"))
    return len(stages.record.operations), len(stages.free), trace, partition, profiling, search, total


def clock(work: Callable[[], Result]) -> tuple[float, Result]:
    """Milliseconds, and the result."""
    started = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - started), result
