"""A comparison's rows, their runs and their scores, whatever is trained; what is scored and shown is the judge's."""

from __future__ import annotations

import itertools
import logging
import re
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from redistill.budget import parse_budget
from redistill.config.files import differences, load, merge, resolved
from redistill.config.settings import ExperimentConfig
from redistill.config.trust import check_trust
from redistill.distillation import Distillation
from redistill.errors import CheckpointError, ConfigError
from redistill.trainers.folder import RunFolder

Settings = tuple[str, ...]
Scores = Mapping[str, float]
PLAIN = "none"
_OF_THE_PLACE = ("run.", "teacher.weights", "data.root", "data.download", "data.workers", "data.cache")
"""What a finished run may have had otherwise: where it lies and where it was made."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridConfig:
    """All combinations of these plans, students, starts and methods; all but methods are named settings.

    Attributes:
        students: ways to make the student, such as other objectives or levers; one without a name by default.
        seeds: those of this grid, instead of the comparison's.
    """

    plans: dict[str, Settings] = field(default_factory=dict)
    students: dict[str, Settings] = field(default_factory=lambda: {"": ()})
    starts: dict[str, Settings] = field(default_factory=dict)
    methods: tuple[str, ...] = (PLAIN,)
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class ComparisonConfig:
    """An experiment, what is set in all of its runs, and the grids of what differs.

    Attributes:
        baseline: the start whose run without a method defines the gap, of classifiers.
        reference: what is set in the reference's runs, of classifiers.
        evaluation: how denoisers are evaluated, see :class:`redistill.studies.evaluation.evaluating.EvaluationConfig`.
    """

    trainer: Literal["comparison"] = "comparison"
    experiment: str = "fashion_mnist/mobilenetv2.yaml"
    settings: Settings = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str = "scratch"
    reference: Settings = ()
    grids: tuple[GridConfig, ...] = ()
    evaluation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table; without seeds of its own it has the comparison's."""

    plan: str
    start: str
    methods: str
    settings: Settings
    seeds: tuple[int, ...] = ()
    student: str = ""

    @property
    def name(self) -> str:
        """A folder's name."""
        parts = filter(None, (self.plan, self.student, self.start, self.methods))
        return re.sub(r"[\s/{}:,]+", "_", "-".join(parts)).strip("_")


@dataclass(frozen=True)
class Result:
    """The scores of a row, of each of its seeds, by name."""

    row: Row
    scores: tuple[Scores, ...]

    def mean(self, name: str) -> float:
        """Over the seeds."""
        return statistics.fmean(scores[name] for scores in self.scores)

    def spread(self, name: str) -> float:
        """Sample standard deviation over the seeds; 0 of a single one."""
        values = [scores[name] for scores in self.scores]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def show(self, name: str) -> str:
        """Mean and spread, or what a single seed gave."""
        if len(self.scores) == 1:
            return f"{self.mean(name):.2f} (1 seed)"
        return f"{self.mean(name):.2f} ± {self.spread(name):.2f}"


class Judge(ABC):
    """How the runs of one kind of experiment are made, scored and shown.

    Attributes:
        kind: the class of the experiments' configuration.
        reference: the first row.
    """

    kind: ClassVar[type[ExperimentConfig]]
    reference: Row

    def __init__(self, config: ComparisonConfig, folder: Path, *, trust: bool = False) -> None:
        self.config, self.folder, self.trust = config, folder, trust

    @abstractmethod
    def train(self, settings: Any, place: Path, *, resume: bool) -> None:
        """Carry out one run."""

    @abstractmethod
    def score(self, row: Row, seed: int) -> Scores:
        """The scores of one run, which is made first where it is not there yet."""

    @abstractmethod
    def render(self, results: Sequence[Result]) -> str:
        """The table in Markdown."""

    @abstractmethod
    def draw(self, results: Sequence[Result]) -> None:
        """Write the pictures into the comparison's folder."""

    def seeds(self, row: Row) -> Sequence[int]:
        """The seeds of a row."""
        return row.seeds or self.config.seeds

    def place(self, row: Row, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / row.name / f"seed-{seed}"

    def is_done(self, row: Row, seed: int) -> bool:
        """Whether a run needs no more training."""
        return RunFolder(self.place(row, seed)).summary.is_file()

    def settings(self, row: Row, seed: int) -> Any:
        """The configuration of a run; all of them have one teacher, trained in the folder unless it is given."""
        teacher = f"teacher.weights={self.folder / 'teacher.safetensors'}"
        own = (f"run.folder={self.place(row, seed)}", f"run.seed={seed}")
        return load(self.kind, self.config.experiment, (teacher, *self.config.settings, *row.settings, *own))

    def check(self) -> None:
        """Refuse, before anything is trained, what no run can be made of, and runs that were made otherwise.

        Raises:
            ConfigError, BudgetError: a setting or a method that there is not, or a budget that is none.
            CheckpointError: a finished run has other settings.
        """
        for row in rows(self.config, self.reference):
            for seed in self.seeds(row):
                settings = self.settings(row, seed)
                check_trust(settings, "the comparison", self.trust)
                Distillation(settings.distillation.methods)
                if settings.student.budget is not None:
                    parse_budget(settings.student.budget)
                self._check_kept(row, seed, settings)

    def _check_kept(self, row: Row, seed: int, settings: Any) -> None:
        folder = RunFolder(self.place(row, seed))
        if not (folder.summary.is_file() and folder.config.is_file()):
            return
        kept, wanted = folder.read_config(), resolved(settings)
        changed = [text for text in differences(merge(wanted, kept), wanted) if not text.startswith(_OF_THE_PLACE)]
        if changed:
            raise CheckpointError(f"{folder.path} was made otherwise: {changed[0]}; set --folder, or that back")

    def finish(self, row: Row, seed: int) -> Path:
        """Make a run, or what is left of it, and return its folder."""
        place = self.place(row, seed)
        if not RunFolder(place).summary.is_file():
            self.train(self.settings(row, seed), place, resume=place.exists())
        return place


def rows(config: ComparisonConfig, reference: Row) -> list[Row]:
    """The reference, then every combination once.

    Raises:
        ConfigError: two of them would have one folder.
    """
    found = {reference.name: reference}
    for grid in config.grids:
        named = itertools.product(grid.plans.items(), grid.students.items(), grid.starts.items(), grid.methods)
        for (plan, one), (student, two), (start, three), methods in named:
            settings = (*one, *two, *three, f"distillation.methods={methods}")
            row = Row(plan, start, methods, settings, grid.seeds, student)
            if found.setdefault(row.name, row).settings != settings:
                raise ConfigError(f"grids: two rows are named {row.name} and set different things; rename one")
    return list(found.values())
