"""Optimality: branch and bound against exhaustive enumeration."""

from __future__ import annotations

import time

from tqdm import tqdm

from redistill.compiler.analysis import analyze
from redistill.evidence.networks import build, short
from redistill.internal.tables import Table
from redistill.memory.conventions import DEPLOY
from redistill.planning.objectives import keep_most_macs
from redistill.planning.problem import PlanningProblem
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import solve

NETWORKS = tuple(
    f"torchvision:{name}"
    for name in (
        "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "vgg16",
        "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny", "googlenet", "mnasnet1_0",
    )
)  # fmt: skip


def run() -> Table:
    """The best MACs kept at 2x and 4x, taps included, by both searches, and their times."""
    table = Table(
        ("network", "budget", "plans", "best exhaustively", "best by search", "equal", "exhaustive ms", "search ms")
    )
    for spec in tqdm(NETWORKS, unit="network", leave=False):
        model, inputs = build(spec)
        analysis = analyze(model, inputs, check=False)
        scaling = ScalingModel(analysis.stages, DEPLOY, candidate_factors(analysis.stages))
        problem = scaling.problem(analysis.crossings)
        for budget in (2, 4):
            limit = analysis.profile.peak_bytes // budget
            started = time.perf_counter()
            exhaustive = best_exhaustively(problem, limit)
            halfway = time.perf_counter()
            found = solve(problem, limit, keep_most_macs())
            searched = problem.total_macs(found.plan) if found else None
            end = time.perf_counter()
            table.add(
                short(spec), f"{budget}x", problem.size, _giga(exhaustive), _giga(searched),
                "yes" if exhaustive == searched else "NO",
                f"{1e3 * (halfway - started):.1f}", f"{1e3 * (end - halfway):.1f}",
            )  # fmt: skip
    return table


def best_exhaustively(problem: PlanningProblem, limit: float) -> float | None:
    """The most MACs of any legal plan within the limit."""
    return max((problem.total_macs(p) for p in problem.enumerate() if problem.peak(p) <= limit), default=None)


def _giga(macs: float | None) -> str:
    return "none fits" if macs is None else f"{macs / 1e9:.4f} G"
