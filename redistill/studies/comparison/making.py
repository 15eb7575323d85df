"""Making a comparison's runs, one after the other or together, and its table."""

from __future__ import annotations

import logging
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from tqdm import tqdm

from redistill.errors import CheckpointError, ConfigError, PlanError, RedistillError, TapError
from redistill.internal.files import write_atomically
from redistill.studies.comparison.runs import ComparisonConfig, Judge, Result, Row, rows
from redistill.trainers.acceleration import processes

TABLE = "table.md"
LIVES = 5
"""How often killed processes are begun again."""

UNSUITED = (ConfigError, PlanError, TapError)
"""What is raised where a student and a method, or a lever and a budget, do not go together."""

logger = logging.getLogger(__name__)


def finish_together(judge: Judge, jobs: int) -> None:
    """Make all runs in so many processes with equal parts of the cores, after the first, which trains the teacher.

    Runs whose process was killed, by a system out of memory say, go on from their checkpoints in a new one.

    Raises:
        RedistillError: a run failed; the others are finished first. Or processes are killed again and again.
    """
    runs = [(row, seed) for row in rows(judge.config, judge.reference) for seed in judge.seeds(row)]
    judge.score(*runs[0])
    left, failed, lives = runs[1:], list[Exception](), LIVES
    while left and lives:
        left, lives = _finish_some(judge, jobs, left, failed), lives - 1
    if failed:
        raise failed[0]
    if left:
        raise CheckpointError(
            f"processes of {judge.folder} were killed {LIVES} times, that of {left[0][0].name} among them; is there "
            "memory for so many? Lower --jobs and call again: what is done is kept"
        )


def _finish_some(
    judge: Judge, jobs: int, runs: list[tuple[Row, int]], failed: list[Exception]
) -> list[tuple[Row, int]]:
    """Make runs together; those whose process was killed are returned, what else went wrong is added to ``failed``."""
    killed = list[tuple[Row, int]]()
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:
        made = {pool.submit(_finish, type(judge), judge.config, judge.folder, judge.trust, *run): run for run in runs}
        try:
            for future in tqdm(as_completed(made), total=len(made), unit="run"):
                try:
                    future.result()
                except UNSUITED:  # said when the table is made
                    pass
                except BrokenProcessPool:
                    killed.append(made[future])
                except (RedistillError, OSError) as error:  # a full disk, say: what else can be finished is
                    failed.append(error)
        except BaseException:  # Ctrl-C and termination: checkpoints are whole at any moment
            for child in active_children():
                child.terminate()
            raise
    return killed


def _begin(jobs: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the comparison's process decides
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
    return [seed for seed in judge.seeds(row) if judge.is_done(row, seed)]


def compare(judge: Judge, *, only_finished: bool = False) -> list[Result]:
    """Run whatever is not there yet; every seed of a row before the next row, the table after each.

    With ``only_finished`` nothing is run: the table is made of the runs that are done. What cannot be made, such as
    re-entry where grids never meet again, is named below the table.

    Raises:
        RedistillError: the reference cannot be made, a run failed, or none is done where nothing is to be run.
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
    if not results:
        raise CheckpointError(f"no run of this comparison is done in {judge.folder}; leave --table out to make them")
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
