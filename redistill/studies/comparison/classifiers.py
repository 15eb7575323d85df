"""Classifiers compared: test top-1, and the share of the gap to the teacher's architecture that is recovered."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from redistill.budget import parse_budget
from redistill.config.settings import ClassifierConfig
from redistill.errors import BudgetError
from redistill.studies.comparison.runs import PLAIN, ComparisonConfig, Judge, Result, Row, Scores
from redistill.trainers.classifier import train

REFERENCE = "the teacher's architecture"
TOP1 = "top1"


class AccuracyJudge(Judge):
    """Test top-1 of the last weights; the reference is the teacher's architecture given the same extra epochs."""

    kind = ClassifierConfig

    def __init__(self, config: ComparisonConfig, folder: Path) -> None:
        super().__init__(config, folder)
        alone = ("student.budget=null", "student.factors=null", "distillation.methods=none")
        self.reference = Row("1x", "teacher", REFERENCE, (*alone, *config.reference))

    def train(self, settings: ClassifierConfig, place: Path, *, resume: bool) -> None:
        """Carry out one run."""
        train(settings, place, resume=resume)

    def score(self, row: Row, seed: int) -> Scores:
        """Test top-1, in percent."""
        summary = json.loads((self.finish(row, seed) / "summary.json").read_text())
        return {TOP1: float(summary["last"]["test"][TOP1])}

    def render(self, results: Sequence[Result]) -> str:
        """The table, with the recovered share of the gap where both of its ends are known."""
        lines = ["| plan | start | methods | test top-1 | gap recovered |", "|---|---|---|---|---|"]
        for result in results:
            row, share = result.row, recovered(result, results, self.config.baseline)
            shown = "" if share is None else f"{share:.0%}"
            lines.append(f"| {row.plan} | {row.start} | {row.methods} | {result.show(TOP1)} | {shown} |")
        return "\n".join(lines)

    def draw(self, results: Sequence[Result]) -> None:
        """Accuracy against plan."""
        draw_frontier(results, self.folder / "frontier.png")


def recovered(result: Result, results: Sequence[Result], baseline: str) -> float | None:
    """(this - plain) / (reference - plain), plain being the same plan from the baseline's start without a method."""
    reference = next(other for other in results if other.row.methods == REFERENCE)
    same = [other for other in results if other.row.plan == result.row.plan and other.row.start == baseline]
    plain = next((other for other in same if other.row.methods == PLAIN), None)
    if plain is None or reference.mean(TOP1) <= plain.mean(TOP1):
        return None
    return (result.mean(TOP1) - plain.mean(TOP1)) / (reference.mean(TOP1) - plain.mean(TOP1))


def draw_frontier(results: Sequence[Result], path: Path) -> None:
    """Accuracy against plan, a line for each methods and start with most plans, the reference as a level."""
    from matplotlib.figure import Figure

    students = sorted(results[1:], key=lambda result: times_less(result.row.plan))
    plans = list(dict.fromkeys(student.row.plan for student in students))
    lines: dict[str, list[Result]] = {}
    for student in students:
        lines.setdefault(f"{student.row.methods} from {student.row.start}", []).append(student)
    most = max(map(len, lines.values()), default=0)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for label, points in lines.items():
        if len(points) < most:
            continue
        places, means = [plans.index(point.row.plan) for point in points], [point.mean(TOP1) for point in points]
        axis.errorbar(places, means, [point.spread(TOP1) for point in points], label=label, marker="o", capsize=3)
    axis.set_xticks(range(len(plans)), plans)
    axis.axhline(results[0].mean(TOP1), color="grey", linestyle="--", label=REFERENCE)
    axis.set(xlabel="plan, named by the budget of peak activation memory", ylabel="test top-1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="lower left")
    figure.savefig(path, dpi=120)


def times_less(plan: str) -> float:
    """By how much a plan named like a budget ("4x", "25%") divides the peak; any other name comes last."""
    try:
        share = parse_budget(plan).share
    except BudgetError:
        share = None
    return 1 / share if share else math.inf
