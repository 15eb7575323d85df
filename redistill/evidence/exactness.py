"""Predicted bytes against the meter, teachers and students, with tolerance 0."""

from __future__ import annotations

from torch import Tensor, nn
from tqdm import tqdm

from redistill import InfeasibleBudgetError, measure, profile, transform
from redistill.capture import capture
from redistill.evidence.networks import EXACT, build, short
from redistill.evidence.table import Table


def run() -> Table:
    """``graph`` and ``eager`` against the meter, for each network and its student at 4x (2x where 4x cannot be had)."""
    table = Table(("network", "graph", "eager", "student", "student graph", "deploy MiB", "arena MiB", "bound"))
    for spec in tqdm(EXACT, unit="network", leave=False):
        model, inputs = build(spec)
        captured = capture(model, inputs).graph_module
        deploy = profile(captured, inputs)
        arena = profile(captured, inputs, "arena")
        budget, student = student_of(model, inputs)
        table.add(
            short(spec),
            difference(profile(captured, inputs, "graph").peak_bytes, measure(captured, inputs)),
            difference(profile(model, inputs, "eager").peak_bytes, measure(model, inputs)),
            budget,
            difference(profile(student, inputs, "graph").peak_bytes, measure(student, inputs)),
            f"{deploy.peak_bytes / 2**20:.3f}",
            f"{arena.peak_bytes / 2**20:.3f}",
            "met" if deploy.lower_bound == deploy.peak_bytes else f"{(deploy.lower_bound or 0) / 2**20:.3f}",
        )
    table.notes.append("graph, eager: measured minus predicted bytes; bound: what no order of operations can go below.")
    return table


def student_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, nn.Module]:
    """The student at the largest of 4x, 2x and 1.5x that can be had."""
    for budget in ("4x", "2x"):
        try:
            return budget, transform(model, inputs, budget).eval()
        except InfeasibleBudgetError:
            continue
    return "1.5x", transform(model, inputs, "1.5x").eval()


def difference(predicted: int, measured: int) -> str:
    """Measured minus predicted."""
    return "0" if measured == predicted else f"{measured - predicted:+,}"
