"""Verification: what must hold of any student, tried on the student itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redistill import Student, load_student
from redistill.compiler.analysis import Analysis
from redistill.memory.recording import Shape


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
