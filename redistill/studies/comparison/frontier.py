"""Accuracy against budget: one line for each kind of student, or for each methods and start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from redistill.budget import parse_budget
from redistill.errors import BudgetError
from redistill.studies.comparison.runs import Result, Row
from redistill.studies.comparison.tables import TOP1, VALIDATION

Lines = Mapping[str, Sequence[Result]]


def draw_frontier(results: Sequence[Result], reference: Row, path: Path) -> None:
    """Draw the lines with most plans, the reference as a level where it is done.

    Where kinds of students are compared, each has the methods and start that are best on the validation set.
    """
    from matplotlib.figure import Figure

    students = sorted(
        (result for result in results if result.row != reference), key=lambda result: times_less(result.row.plan)
    )
    plans = list(dict.fromkeys(student.row.plan for student in students))
    lines = best_of_students(students) if any(student.row.student for student in students) else by_methods(students)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for label, points in lines.items():
        places, means = [plans.index(point.row.plan) for point in points], [point.mean(TOP1) for point in points]
        axis.errorbar(places, means, [point.spread(TOP1) for point in points], label=label, marker="o", capsize=3)
    axis.set_xticks(range(len(plans)), plans)
    for result in results:
        if result.row == reference:
            axis.axhline(result.mean(TOP1), color="grey", linestyle="--", label=reference.methods)
    axis.set(xlabel="plan, named by the budget of peak activation memory", ylabel="test top-1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="lower left")
    figure.savefig(path, dpi=120)


def by_methods(students: Sequence[Result]) -> Lines:
    """Students by methods and start, those with most plans."""
    lines: dict[str, list[Result]] = {}
    for student in students:
        lines.setdefault(f"{student.row.methods} from {student.row.start}", []).append(student)
    most = max(map(len, lines.values()), default=0)
    return {label: points for label, points in lines.items() if len(points) == most}


def best_of_students(students: Sequence[Result]) -> Lines:
    """For each kind of student its best result at each plan, chosen by validation and never by the test."""
    best: dict[str, dict[str, Result]] = {}
    for student in students:
        kind = best.setdefault(student.row.student, {})
        if student.row.plan not in kind or _chosen_by(student) > _chosen_by(kind[student.row.plan]):
            kind[student.row.plan] = student
    return {label: list(points.values()) for label, points in best.items()}


def _chosen_by(result: Result) -> float:
    return result.mean(VALIDATION) if all(VALIDATION in scores for scores in result.scores) else -math.inf


def times_less(plan: str) -> float:
    """By how much a plan named like a budget ("4x", "25%") divides the peak; any other name comes last."""
    try:
        share = parse_budget(plan).share
    except BudgetError:
        share = None
    return 1 / share if share else math.inf
