"""Making a comparison's runs, one after the other or together, and its table."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from tqdm import tqdm

from redistill.errors import ConfigError, PlanError, TapError
from redistill.internal.files import write_atomically
from redistill.studies.comparison.runs import ComparisonConfig, Judge, Result, Row, rows
from redistill.trainers.acceleration import processes
from redistill.trainers.folder import RunFolder

TABLE = "table.md"

UNSUITED = (ConfigError, PlanError, TapError)
"""What is raised where a student and a method, or a lever and a budget, do not go together."""

logger = logging.getLogger(__name__)


def finish_together(judge: Judge, jobs: int) -> None:
    """Make all runs in so many processes with equal parts of the cores, after the first, which trains the teacher."""
    runs = [(row, seed) for row in rows(judge.config, judge.reference) for seed in judge.seeds(row)]
    judge.score(*runs[0])
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:
        futures = [pool.submit(_finish, type(judge), judge.config, judge.folder, judge.trust, *run) for run in runs[1:]]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            with suppress(*UNSUITED):  # said when the table is made
                future.result()


def _begin(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A comparison that is killed takes its runs along; they are continued when it is called again."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _finish(kind: type[Judge], config: ComparisonConfig, folder: Path, trust: bool, row: Row, seed: int) -> None:
    kind(config, folder, trust=trust).finish(row, seed)


def finished(judge: Judge, row: Row) -> list[int]:
    """The seeds of a row whose runs are done."""
    return [seed for seed in judge.seeds(row) if RunFolder(judge.place(row, seed)).summary.is_file()]


def compare(judge: Judge, *, only_finished: bool = False) -> list[Result]:
    """Run whatever is not there yet; every seed of a row before the next row, the table after each.

    With ``only_finished`` nothing is run: the table is made of the runs that are done. What cannot be made, such as
    re-entry where grids never meet again, is named below the table.

    Raises:
        RedistillError: the reference cannot be made, or a run failed.
    """
    results, left_out = list[Result](), list[str]()
    for row in rows(judge.config, judge.reference):
        seeds = finished(judge, row) if only_finished else judge.seeds(row)
        try:
            scores = tuple(judge.score(row, seed) for seed in seeds)
        except UNSUITED as error:
            if row == judge.reference:
                raise
            left_out.append(f"{row.name}: {error}")
            continue
        if scores:
            results.append(Result(row, scores))
            logger.info("%s: %s", row.name, ", ".join(f"{n} {results[-1].mean(n):.4g}" for n in scores[0]))
            _write(judge, results, left_out)
    _write(judge, results, left_out)
    if processes().is_main_process:
        judge.draw(results)
    return results


def _write(judge: Judge, results: list[Result], left_out: list[str]) -> None:
    """The table as far as it goes."""
    if processes().is_main_process:
        lines = [
            judge.render(results),
            *(["", "Left out:", "", *(f"- {line}" for line in left_out)] if left_out else []),
        ]
        write_atomically(judge.folder / TABLE, ("\n".join(lines) + "\n").encode())
