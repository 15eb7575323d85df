"""Predicted bytes against the meter, teachers and students, with tolerance 0."""

from __future__ import annotations

from torch import Tensor, nn
from tqdm import tqdm

from redistill import InfeasibleBudgetError, measure, profile, transform
from redistill.evidence.networks import EXACT, build, short
from redistill.internal.tables import Table
from redistill.planning.partition import find_stages
from redistill.tracing.capture import capture


def run() -> Table:
    """``graph`` and ``eager`` against the meter, for each network and a student of it."""
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
    """The student at 4x or 2x; where an output that cannot shrink forbids both, every stage pooled by two."""
    for budget in ("4x", "2x"):
        try:
            return budget, transform(model, inputs, budget, taps="auto").eval()
        except InfeasibleBudgetError:
            continue
    stages = len(find_stages(capture(model, inputs, check=False).graph_module, inputs).free)
    return "factors 2", transform(model, inputs, factors=(2,) * stages, taps="auto").eval()


def difference(predicted: int, measured: int) -> str:
    """Measured minus predicted."""
    return "0" if measured == predicted else f"{measured - predicted:+,}"
