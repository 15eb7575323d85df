"""A trial: one network transformed at 2x, or at the mildest budget that its plans have, and all of it checked."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from redistill import InfeasibleBudgetError, RedistillError, Student, measure, profile
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.choosing import planning_problem
from redistill.compiler.parts import find_part
from redistill.compiler.pipeline import make_student
from redistill.compiler.request import Request
from redistill.errors import ModelError, TraceError
from redistill.evidence.verification import verify
from redistill.evidence.zoo.catalogue import Entry, build
from redistill.evidence.zoo.results import Row
from redistill.internal.reasons import reason
from redistill.planning.search import least_peak
from redistill.student import record_of

ASKED = "2x"


def try_network(entry: Entry) -> dict[str, object]:
    """The row of one network, as plain data; whatever goes wrong is in it."""
    warnings.filterwarnings("ignore")
    row = Row(entry.library, entry.name)
    try:
        model, inputs = build(entry)
    except Exception as error:  # the library's own builder: not what is tried here
        row.outcome, row.reason = "not built", _one_line(error)
        return asdict(row)
    row.convolutions = sum(isinstance(m, _ConvNd) and _overlaps(m) for m in model.modules())
    try:
        _transform(row, model, inputs)
    except RedistillError as error:
        row.outcome, row.reason = "refused", _one_line(error)
    except MemoryError as error:
        row.outcome, row.reason = "out of memory", _one_line(error)
    except Exception as error:
        row.outcome, row.reason = "crashed", f"{_one_line(error)} ({_place(error)})"
    return asdict(row)


def _overlaps(convolution: _ConvNd) -> bool:
    """Whether neighbouring windows share cells: neither pointwise nor a patch embedding, which are matrix products."""
    return any(side > step for side, step in zip(convolution.kernel_size, convolution.stride, strict=True))


def _transform(row: Row, model: nn.Module, inputs: Any) -> None:
    started = time.process_time()
    try:
        part, analysis = _understand(model, inputs)
        row.traced, row.part = True, part
        row.poolable = _has_smaller_plan(analysis)
        student = _mildest(row, analysis)
    finally:
        row.seconds = round(time.process_time() - started, 2)
    row.planned = True
    row.factors = ",".join(map(str, record_of(student).plan.factors))
    row.ratio = round(record_of(student).teacher_profile.peak_bytes / record_of(student).plan.peak_bytes, 2)
    row.taps = len(record_of(student).taps)
    problem = verify(model.get_submodule(part), student, analysis)
    row.outcome, row.reason = ("wrong", problem) if problem else ("verified", "")
    example = analysis.call.example(analysis.inputs)
    row.difference = measure(student.eval(), example) - profile(student, example, "graph").peak_bytes


def _understand(model: nn.Module, inputs: Any) -> tuple[str, Analysis]:
    """The analysis of the whole (at the path ''), or of the largest part before only the data decide what follows."""
    try:
        return "", analyze(model, inputs)
    except TraceError as error:
        return find_part(model, inputs, error, analyze)


def _has_smaller_plan(analysis: Analysis) -> bool:
    """Whether a plan of its lattice needs less than the teacher, as far as is known before it is carried out."""
    problem = planning_problem(analysis)
    least = least_peak(problem)
    return least is not None and problem.peak(least.plan) < analysis.profile.peak_bytes


def _mildest(row: Row, analysis: Analysis) -> Student:
    """The student at the reduction asked for; where that is out of reach, at any."""
    try:
        row.budget = ASKED
        return make_student(analysis, Request.of(ASKED, taps="auto"))
    except InfeasibleBudgetError as error:
        row.reason = _one_line(error)
    row.budget = "any"
    below = f"{analysis.profile.peak_bytes - 1}B"
    return make_student(analysis, Request.of(below, taps="auto"))


def _one_line(error: BaseException) -> str:
    text = reason(error, 600)
    return (
        text
        if isinstance(error, RedistillError) and not isinstance(error, ModelError)
        else f"{type(error).__name__}: {text}"
    )


def _place(error: BaseException) -> str:
    """The deepest frame of this library."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/redistill/" in f.filename]
    return f"{frames[-1].filename.rpartition('/redistill/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
