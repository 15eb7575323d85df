"""Verification: what must hold of any student, tried on the student itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redistill import RedistillError, Student, load_student
from redistill.compiler.analysis import Analysis
from redistill.compiler.choosing import carry_out
from redistill.compiler.request import Request
from redistill.student import record_of
from redistill.tracing.call import take_apart
from redistill.tracing.contexts import preserved_generators
from redistill.tracing.copying import clone

CLOSE = 1e-3
"""How far from the teacher's outputs a graph with factors 1 may be, as a share of the largest of them."""


def verify(model: nn.Module, student: Student, analysis: Analysis, unpooled: bool = True) -> str:
    """What does not hold of the student; empty if all does.

    Without ``unpooled`` it is not tried whether a student with factors 1 is the teacher, which no plan changes.
    """
    plan = record_of(student).plan
    if plan.limit is not None and plan.peak_bytes > plan.limit:
        return "over the budget"
    untouched = clone(model, shares_tensors=True)  # detectors keep what their first run made
    expected, found = _run(model.eval(), analysis), _run(student.eval(), analysis)
    if _form(expected) != _form(found):
        return f"another output: {_form(found)} for {_form(expected)}"[:300]
    if not _trains(model, student, analysis):
        return "not finite"
    problem = _verify_unpooled(expected, analysis) if unpooled else ""
    return problem or _verify_saved(untouched, student.eval(), analysis)


def _run(network: nn.Module, analysis: Analysis) -> Any:
    """What it yields; one that draws at random draws the same each time."""
    with torch.no_grad(), preserved_generators():
        torch.manual_seed(0)
        return analysis.call.run(network, analysis.inputs)


def _form(output: Any) -> Any:
    """The output's classes, and the shapes of its tensors."""
    plain, result = take_apart(output)
    return result, [tuple(x.shape) for x in tensors_of(plain)]


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [x for x in tree_leaves(take_apart(output)[0]) if isinstance(x, Tensor)]


def _trains(model: nn.Module, student: Student, analysis: Analysis) -> bool:
    """One training step's gradients are finite: two maps of 96 a side, or of full size where the teacher needs it."""
    for side in (96, analysis.inputs[0].shape[-1]):
        two = tuple(_two_of(x, side) for x in analysis.inputs)
        try:
            outputs = tensors_of(analysis.call.run(student.train(), two))
            loss = torch.stack([x.float().square().mean() for x in outputs if x.requires_grad]).sum()
        except (RuntimeError, AssertionError, ValueError, RedistillError):
            continue
        loss.backward()  # type: ignore[no-untyped-call]
        finite = [bool(p.grad.isfinite().all()) for p in student.parameters() if p.grad is not None]
        student.zero_grad(set_to_none=True)
        if bool(loss.isfinite()) and bool(finite) and all(finite):
            return True
        if _runs(model, analysis, two):
            return False
    return False


def _runs(model: nn.Module, analysis: Analysis, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the teacher takes these inputs and yields finite values."""
    try:
        with torch.no_grad():
            return all(bool(x.isfinite().all()) for x in tensors_of(analysis.call.run(clone(model).train(), inputs)))
    except Exception:
        return False


def _two_of(tensor: Tensor, side: int) -> Tensor:
    crop = tensor[..., :side, :side] if tensor.dim() == 4 else tensor
    return crop.repeat(2, *([1] * (tensor.dim() - 1))) if tensor.dim() else tensor


def _verify_unpooled(expected: Any, analysis: Analysis) -> str:
    """With factors 1 the student is the teacher."""
    request = Request.of(factors=[1] * len(analysis.stages.free), taps="none")
    graph_module = carry_out(analysis, request.factors or (), request).rewritten.graph_module.eval()
    with torch.no_grad(), preserved_generators():
        torch.manual_seed(0)
        found = tensors_of(graph_module(*analysis.inputs))
    worst = max((_distance(a, b) for a, b in zip(found, tensors_of(expected), strict=True)), default=0.0)
    return "" if worst <= CLOSE else f"with factors 1 its outputs differ by {worst:.1e} of the largest"


def _distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().nan_to_num(), expected.double().nan_to_num()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)) if found.numel() else 0.0


def _verify_saved(model: nn.Module, student: Student, analysis: Analysis) -> str:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_student(Student.save(student, Path(folder) / "student"), model).eval()
        same = zip(tensors_of(_run(student, analysis)), tensors_of(_run(loaded, analysis)), strict=True)
        return "" if all(torch.equal(a, b) for a, b in same) else "loaded outputs differ"
