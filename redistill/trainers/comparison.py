"""Compare methods on one experiment: every plan, start and method, over several seeds, as one table.

    python -m redistill.trainers.comparison --config fashion_mnist/comparison.yaml --folder runs/comparison

Finished runs are kept and stopped ones continued, so the command can be repeated until all is done. The teacher is
trained once; the reference is its own architecture given the same extra epochs, and the gap is what the plain student
from scratch lacks of that.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from redistill.errors import ConfigError, RedistillError
from redistill.trainers.acceleration import leave_processes, processes
from redistill.trainers.checkpoint import write_atomically
from redistill.trainers.classifier import train
from redistill.trainers.config import load
from redistill.trainers.settings import ClassifierConfig

Settings = tuple[str, ...]
PLAIN, REFERENCE = "none", "the teacher's architecture"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridConfig:
    """All combinations of these plans, starts and methods; plans and starts are named settings."""

    plans: dict[str, Settings] = field(default_factory=dict)
    starts: dict[str, Settings] = field(default_factory=dict)
    methods: tuple[str, ...] = (PLAIN,)


@dataclass(frozen=True)
class ComparisonConfig:
    """An experiment, what is set in all of its runs, and the grids of what differs.

    Attributes:
        baseline: the start whose run without a method defines the gap.
    """

    trainer: Literal["comparison"] = "comparison"
    experiment: str = "fashion_mnist/mobilenetv2.yaml"
    settings: Settings = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str = "scratch"
    grids: tuple[GridConfig, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    plan: str
    start: str
    methods: str
    settings: Settings

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join((self.plan, self.start, self.methods)).replace(" ", "_").replace("/", "_")


@dataclass(frozen=True)
class Result:
    """Test top-1 of a row's seeds, in percent."""

    row: Row
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds; 0 of a single one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0


def rows(config: ComparisonConfig) -> list[Row]:
    """The reference, then every combination once."""
    alone = ("student.budget=null", "student.factors=null", "distillation.methods=none")
    reference = Row("1x", "teacher", REFERENCE, alone)
    found = {reference.name: reference}
    for grid in config.grids:
        for plan, plan_settings in grid.plans.items():
            for start, start_settings in grid.starts.items():
                for methods in grid.methods:
                    settings = (*plan_settings, *start_settings, f"distillation.methods={methods}")
                    row = Row(plan, start, methods, settings)
                    found.setdefault(row.name, row)
    return list(found.values())


def compare(config: ComparisonConfig, folder: Path) -> list[Result]:
    """Run whatever is not there yet; every seed of a row before the next row, the table after each."""
    results: list[Result] = []
    for row in rows(config):
        scores = [score(config, row, seed, folder) for seed in config.seeds]
        results.append(Result(row, tuple(scores)))
        logger.info("%s: %s", row.name, ", ".join(f"{value:.2f}" for value in scores))
        if processes().is_main_process:
            write_atomically(folder / "table.md", (render(results, config.baseline) + "\n").encode())
    if processes().is_main_process:
        draw_frontier(results, folder / "frontier.png")
    return results


def score(config: ComparisonConfig, row: Row, seed: int, folder: Path) -> float:
    """Test top-1 of the last weights of one run."""
    place = folder / row.name / f"seed-{seed}"
    finished = place / "summary.json"
    if not finished.is_file():
        common = (f"run.folder={place}", f"teacher.weights={folder / 'teacher.safetensors'}", f"run.seed={seed}")
        settings = load(ClassifierConfig, config.experiment, (*config.settings, *row.settings, *common))
        train(settings, place, resume=place.exists())
    return float(json.loads(finished.read_text())["last"]["test"]["top1"])


def render(results: Sequence[Result], baseline: str) -> str:
    """The table in Markdown, with the recovered share of the gap where both of its ends are known."""
    lines = ["| plan | start | methods | test top-1 | gap recovered |", "|---|---|---|---|---|"]
    for result in results:
        row, share = result.row, recovered(result, results, baseline)
        shown = "" if share is None else f"{share:.0%}"
        accuracy = f"{result.mean:.2f} ± {result.spread:.2f}"
        lines.append(f"| {row.plan} | {row.start} | {row.methods} | {accuracy} | {shown} |")
    return "\n".join(lines)


def recovered(result: Result, results: Sequence[Result], baseline: str) -> float | None:
    """(this - plain) / (reference - plain), plain being the same plan from the baseline's start without a method."""
    reference = next(other for other in results if other.row.methods == REFERENCE)
    same = [other for other in results if other.row.plan == result.row.plan and other.row.start == baseline]
    plain = next((other for other in same if other.row.methods == PLAIN), None)
    if plain is None or reference.mean <= plain.mean:
        return None
    return (result.mean - plain.mean) / (reference.mean - plain.mean)


def draw_frontier(results: Sequence[Result], path: Path) -> None:
    """Accuracy against plan, one line a start and method, the reference as a level."""
    from matplotlib.figure import Figure

    lines: dict[str, list[Result]] = {}
    for result in results:
        if result.row.methods != REFERENCE:
            lines.setdefault(f"{result.row.methods} from {result.row.start}", []).append(result)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for label, points in lines.items():
        plans, means = [point.row.plan for point in points], [point.mean for point in points]
        axis.errorbar(plans, means, [point.spread for point in points], label=label, marker="o", capsize=3)
    axis.axhline(results[0].mean, color="grey", linestyle="--", label=REFERENCE)
    axis.set(xlabel="peak activation memory, times less", ylabel="test top-1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="redistill.trainers.comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="fashion_mnist/comparison.yaml", help="a comparison; %(default)s")
    parser.add_argument("--folder", default="runs/comparison", help="where runs and table go; %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="A=VALUE", help="change one setting; repeatable")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("redistill").setLevel(logging.INFO)
    try:
        config = load(ComparisonConfig, options.config, options.set)
        if not config.seeds:
            raise ConfigError("seeds: give one or more")
        results = compare(config, Path(options.folder))
    except RedistillError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    finally:
        leave_processes()
    if processes().is_main_process:
        sys.stdout.write(render(results, config.baseline) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
