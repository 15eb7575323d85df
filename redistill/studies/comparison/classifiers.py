"""Classifiers compared: test top-1, and the share of the gap to the teacher's architecture that is recovered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redistill.config.settings import ClassifierConfig
from redistill.studies.comparison.frontier import draw_frontier
from redistill.studies.comparison.runs import PLAIN, ComparisonConfig, Judge, Result, Row, Scores
from redistill.studies.comparison.tables import COSTS, TOP1, VALIDATION, render_table
from redistill.trainers.classifier import train
from redistill.trainers.folder import RunFolder

REFERENCE = "the teacher's architecture"


class AccuracyJudge(Judge):
    """Test top-1 of the last weights; the reference is the teacher's architecture given the same extra epochs."""

    kind = ClassifierConfig

    def __init__(self, config: ComparisonConfig, folder: Path, *, trust: bool = False) -> None:
        super().__init__(config, folder, trust=trust)
        alone = ("student.budget=null", "student.factors=null", "distillation.methods=none")
        self.reference = Row("1x", "teacher", REFERENCE, (*alone, *config.reference))

    def train(self, settings: ClassifierConfig, place: Path, *, resume: bool) -> None:
        """Carry out one run."""
        train(settings, place, resume=resume, trust=self.trust)

    def score(self, row: Row, seed: int) -> Scores:
        """Test and validation top-1, in percent, and what the student costs."""
        return read_scores(self.finish(row, seed))

    def render(self, results: Sequence[Result]) -> str:
        """The table, with the recovered share of the gap where both of its ends are known."""
        return render_table(
            results, {id(result): recovered(result, results, self.config.baseline) for result in results}
        )

    def draw(self, results: Sequence[Result]) -> None:
        """Accuracy against plan."""
        draw_frontier(results, self.reference, self.folder / "frontier.png")


def read_scores(place: Path) -> Scores:
    """The scores of a finished run, from its summary."""
    summary = RunFolder(place).read_summary()
    scores = {TOP1: float(summary["last"]["test"][TOP1])}
    if "validation" in summary["last"]:
        scores[VALIDATION] = float(summary["last"]["validation"][TOP1])
    return scores | {name: float(value) for name, value in summary.get("costs", {}).items() if name in COSTS}


def recovered(result: Result, results: Sequence[Result], baseline: str) -> float | None:
    """(this - plain) / (reference - plain), plain being the same plan from the baseline's start without a method."""
    reference = next((other for other in results if other.row.methods == REFERENCE), None)
    row = result.row
    same = [o for o in results if (o.row.plan, o.row.student, o.row.start) == (row.plan, row.student, baseline)]
    plain = next((other for other in same if other.row.methods == PLAIN), None)
    if reference is None or plain is None or reference.mean(TOP1) <= plain.mean(TOP1):
        return None
    return (result.mean(TOP1) - plain.mean(TOP1)) / (reference.mean(TOP1) - plain.mean(TOP1))
