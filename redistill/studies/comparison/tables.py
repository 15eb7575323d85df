"""The classifiers' table in Markdown: accuracies, and what each student costs where it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from redistill.internal.text import format_bytes
from redistill.studies.comparison.runs import Result

TOP1, VALIDATION = "top1", "validation"

Show = Callable[[float], str]

COSTS: Mapping[str, tuple[str, Show]] = {
    "peak_bytes": ("peak", lambda value: format_bytes(round(value))),
    "metered_bytes": ("metered", lambda value: format_bytes(round(value))),
    "macs": ("MACs, M", lambda value: f"{value / 1e6:.1f}"),
    "parameters": ("parameters, K", lambda value: f"{value / 1e3:.1f}"),
    "latency_ms": ("latency, ms", lambda value: f"{value:.2f}"),
}
"""Costs by their names in summaries: the column's head, and how a value is shown."""


def render_table(results: Sequence[Result], shares: Mapping[int, float | None]) -> str:
    """One line a row; columns that no row fills are left out. ``shares`` are of the gap, by ``id`` of the result."""
    columns: dict[str, Callable[[Result], str]] = {
        "plan": lambda result: result.row.plan,
        "student": lambda result: result.row.student,
        "start": lambda result: result.row.start,
        "methods": lambda result: result.row.methods,
        "validation top-1": lambda result: _show(result, VALIDATION),
        "test top-1": lambda result: _show(result, TOP1),
        "gap recovered": lambda result: _percent(shares[id(result)]),
        **{head: _cost(name, show) for name, (head, show) in COSTS.items()},
    }
    cells = {head: [show(result) for result in results] for head, show in columns.items()}
    shown = {head: values for head, values in cells.items() if any(values) or head in ("test top-1", "gap recovered")}
    lines = [" | ".join(values) for values in zip(*shown.values(), strict=True)]
    return "\n".join(f"| {line} |" for line in [" | ".join(shown), "|".join("---" for _ in shown), *lines])


def _show(result: Result, name: str) -> str:
    return result.show(name) if all(name in scores for scores in result.scores) else ""


def _cost(name: str, show: Show) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        known = all(name in scores for scores in result.scores)
        return show(result.mean(name)) if known else ""

    return cell


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
