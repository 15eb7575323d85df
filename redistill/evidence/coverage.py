"""Coverage: every torchvision classifier, segmenter and detection backbone, at two budgets."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from redistill import RedistillError, Student, load_student
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.pipeline import make_student, provenance
from redistill.evidence.networks import build, short, torchvision_specs
from redistill.evidence.table import Table
from redistill.memory.recording import Shape

BUDGETS = ("2x", "4x")


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
        rows.append((short(spec), budget, *attempt(model, analysis, budget)))
        gc.collect()  # graphs and their modules refer to each other: without this gigabytes of weights linger
    return rows


def _analyze(model: nn.Module, inputs: tuple[Tensor, ...]) -> Analysis | RedistillError:
    try:
        return analyze(model, inputs)
    except RedistillError as error:
        return error


def attempt(model: nn.Module, analysis: Analysis | RedistillError, budget: str) -> tuple[str, str, str, str]:
    """Result, ratio, MACs kept and number of taps of one model at one budget."""
    try:
        if isinstance(analysis, RedistillError):
            raise analysis
        student = make_student(analysis, provenance(model, analysis, budget), "macs")
    except RedistillError as error:
        kind = {"InfeasibleBudgetError": "refused", "TraceError": "not traced"}.get(type(error).__name__, "failed")
        return f"{kind}: {error}", "", "", ""
    problem = verify(model, student, analysis)
    ratio = student.teacher_profile.peak_bytes / student.plan.peak_bytes
    result = f"not verified: {problem}" if problem else "verified"
    return result, f"{ratio:.2f}x", f"{student.plan.macs_kept:.0%}", str(len(student.record.taps))


def verify(model: nn.Module, student: Student, analysis: Analysis) -> str:
    """What does not hold of the student; empty if all does."""
    limit = student.plan.limit
    if limit is not None and student.plan.peak_bytes > limit:
        return "over the budget"
    with torch.no_grad():
        outputs = _tensors(student.eval()(*analysis.inputs))
    expected = tree_leaves(analysis.stages.record.values["output"], is_leaf=lambda x: isinstance(x, Shape))
    if [tuple(x.shape) for x in outputs] != expected:
        return "another output shape"
    if not _trains(student, analysis.inputs):
        return "not finite"
    return _verify_saved(model, student.eval(), analysis.inputs)


def _trains(student: Student, inputs: tuple[Tensor, ...]) -> bool:
    """One training step's gradients are finite: two maps of 96 a side, or of full size where it must be."""
    for side in (96, inputs[0].shape[-1]):
        two = tuple(_two_of(x, side) for x in inputs)
        try:
            loss = torch.stack([x.float().square().mean() for x in _tensors(student.train()(*two))]).sum()
        except (RuntimeError, AssertionError, ValueError):
            continue
        loss.backward()  # type: ignore[no-untyped-call]
        finite = [bool(p.grad.isfinite().all()) for p in student.parameters() if p.grad is not None]
        student.zero_grad(set_to_none=True)
        return bool(loss.isfinite()) and bool(finite) and all(finite)
    return False


def _two_of(tensor: Tensor, side: int) -> Tensor:
    crop = tensor[..., :side, :side] if tensor.dim() == 4 else tensor
    return crop.repeat(2, *([1] * (tensor.dim() - 1)))


def _verify_saved(model: nn.Module, student: Student, inputs: tuple[Tensor, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = load_student(student.save(Path(folder) / "student"), model).eval()
        same = zip(_tensors(student(*inputs)), _tensors(loaded(*inputs)), strict=True)
        return "" if all(torch.equal(a, b) for a, b in same) else "loaded outputs differ"


def _tensors(output: object) -> list[Tensor]:
    leaves = tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [x for x in leaves if isinstance(x, Tensor)]
