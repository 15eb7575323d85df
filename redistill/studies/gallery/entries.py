"""What hangs in the gallery: one student beside its teacher, and their accuracies where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from redistill.errors import InfeasibleBudgetError, RedistillError
from redistill.models import parse_spec
from redistill.report.data import Comparison
from redistill.studies.benchmark.pair import find_student, make_pair, read_pair
from redistill.studies.gallery.accuracies import Accuracy, accuracy_of_run


@dataclass(frozen=True)
class Entry:
    """A student: what was asked for (a spec or a folder), the short name of its model, the comparison."""

    subject: str
    name: str
    comparison: Comparison
    accuracy: Accuracy | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What a file of accuracies may call it."""
        return (self.subject, self.comparison.title, self.name)

    @property
    def known(self) -> tuple[float, ...]:
        """The teacher's and the student's accuracy in percent; nothing unless both are known."""
        found = self.accuracy
        if found is None or found.teacher is None or found.student is None:
            return ()
        return found.teacher, found.student

    def describe_accuracy(self) -> str:
        """Teacher's and student's accuracy; nothing where neither is known."""
        if self.accuracy is None:
            return ""
        values = (self.accuracy.teacher, self.accuracy.student)
        return " → ".join("?" if value is None else f"{value:.2f} %" for value in values)


def read_entry(subject: str, budget: str = "4x", shape: str | None = None, trust: bool = False) -> Entry:
    """The entry of a student's folder, of a run's folder, or of a model whose student is made for ``budget``.

    Raises:
        RedistillError: as ``transform`` and ``load_student``; a folder without a student.
    """
    if Path(subject).is_dir():
        pair, accuracy = read_pair(subject, trust=trust), accuracy_of_run(_run_folder(subject))
    elif ":" in subject:
        pair, accuracy = make_pair(subject, budget, shape=shape), None
    else:
        raise RedistillError(f"{subject} is neither a folder nor a model; write a folder, or torchvision:NAME")
    return Entry(subject, parse_spec(pair.model).name, pair.student.comparison(), accuracy)


def _run_folder(subject: str) -> Path:
    """A run holds its student in ``student``."""
    student = find_student(subject).resolve()
    return student.parent if student.name == "student" else student


def collect(
    subjects: Sequence[str],
    budget: str = "4x",
    shape: str | None = None,
    known: Mapping[str, Accuracy] | None = None,
    progress: bool = False,
    trust: bool = False,
) -> tuple[list[Entry], dict[str, str]]:
    """All entries with the accuracies of ``known``, and of each model whose budget is out of reach the reason.

    Raises:
        RedistillError: a subject that cannot be used; the first reason, if no budget is within reach.
    """
    entries, refused = [], {}
    for subject in tqdm(subjects, unit="model", leave=False, disable=not progress):
        try:
            entries.append(_with_accuracy(read_entry(subject, budget, shape, trust), known or {}))
        except InfeasibleBudgetError as error:
            refused[subject] = str(error)
    if not entries:
        raise InfeasibleBudgetError(next(iter(refused.values())))
    return entries, refused


def _with_accuracy(entry: Entry, known: Mapping[str, Accuracy]) -> Entry:
    """The user's figures go before a run's own."""
    found = next((known[name] for name in entry.names if name in known), entry.accuracy)
    return replace(entry, accuracy=found)
