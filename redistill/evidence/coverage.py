"""Coverage: every torchvision classifier, segmenter and detection backbone, at two budgets."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill import RedistillError
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.pipeline import make_student
from redistill.compiler.request import Request
from redistill.evidence.networks import build, short, torchvision_specs
from redistill.evidence.verification import verify
from redistill.internal.tables import Table
from redistill.student import record_of

BUDGETS = ("2x", "4x")
VERIFIED = "verified"


def run(names: Sequence[str] = ()) -> Table:
    """Transform, verify and save each model; ``names`` restricts the list to those that contain one of them.

    Verified is: the student fits, the output's shape is the teacher's, a training step's gradients are finite, loaded
    outputs are equal to the bit. Models are shared out among as many processes as there are processors.
    """
    table = Table(("model", "budget", "result", "ratio", "MACs kept", "taps"))
    specs = [s for s in torchvision_specs() if not names or any(n in s for n in names)]
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for rows in tqdm(pool.map(cover, specs), total=len(specs), unit="model", leave=False):
            table.rows.extend(rows)
    outcomes = Counter(f"{row[1]} {row[2].partition(':')[0]}" for row in table.rows)
    table.notes += [f"{count} {outcome}" for outcome, count in sorted(outcomes.items())]
    return table


def cover(spec: str) -> list[tuple[str, ...]]:
    """The rows of one model."""
    model, inputs = build(spec)
    analysis = _analyze(model, inputs)
    rows: list[tuple[str, ...]] = []
    for budget in BUDGETS:
        is_first = not any(row[2] == VERIFIED for row in rows)
        rows.append((short(spec), budget, *attempt(model, analysis, budget, unpooled=is_first)))
        gc.collect()  # graphs and their modules refer to each other: without this gigabytes of weights linger
    return rows


def _analyze(model: nn.Module, inputs: tuple[Tensor, ...]) -> Analysis | RedistillError:
    try:
        return analyze(model, inputs)
    except RedistillError as error:
        return error


def attempt(
    model: nn.Module, analysis: Analysis | RedistillError, budget: str, unpooled: bool
) -> tuple[str, str, str, str]:
    """Result, ratio, MACs kept and number of taps of one model at one budget."""
    try:
        if isinstance(analysis, RedistillError):
            raise analysis
        student = make_student(analysis, Request.of(budget, taps="auto"))
    except RedistillError as error:
        kind = {"InfeasibleBudgetError": "refused", "TraceError": "not traced"}.get(type(error).__name__, "failed")
        return f"{kind}: {error}", "", "", ""
    problem = verify(model, student, analysis, unpooled)
    ratio = student.teacher_profile.peak_bytes / student.plan.peak_bytes
    result = f"not verified: {problem}" if problem else VERIFIED
    return result, f"{ratio:.2f}x", f"{student.plan.macs_kept:.0%}", str(len(record_of(student).taps))
