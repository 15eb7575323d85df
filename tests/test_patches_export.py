"""Students with patches in files: equal outputs, and an arena accounted for to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redistill import Student, transform
from redistill.export.exporting import export
from redistill.export.preparation import prepare
from tests.graphs import image
from tests.test_patches_students import Classifier, gated

X = image(3, 1, 32)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return transform(Classifier().eval(), X, "3x", levers="patches").eval()


def test_the_file_is_of_the_parts_and_joins_them_by_concatenation(student: Student) -> None:
    prepared = prepare(student, X)
    names = {getattr(n.target, "__name__", str(n.target)) for n in prepared.graph_module.graph.nodes}
    assert "cat" in names
    assert "setitem" not in names
    assert prepared.profile.peak_bytes < prepare(Classifier().eval(), X).profile.peak_bytes / 2


def test_batch_norms_are_folded_before_the_network_is_taken_apart(student: Student) -> None:
    modules = dict(prepare(student, X).graph_module.named_modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in modules.values())


@pytest.mark.parametrize(
    ("format", "needs"), [("pt2", "torch"), ("onnx", "onnxruntime"), ("executorch-portable", "executorch")]
)
def test_files_give_the_same_outputs(student: Student, tmp_path: Path, format: str, needs: str) -> None:
    pytest.importorskip(needs)
    exported = export(prepare(student, X), tmp_path / "file", format)
    assert exported.parity.relative_error <= 1e-5


@pytest.mark.parametrize(
    ("format", "needs"), [("pt2", "torch"), ("onnx", "onnxruntime"), ("executorch-portable", "executorch")]
)
def test_files_make_gates_in_a_first_sweep_too(tmp_path: Path, format: str, needs: str) -> None:
    pytest.importorskip(needs)
    x = image(3, 1, 64)
    student = transform(gated(), x, "2x", levers="patches", max_extra_macs=1).eval()
    prepared = prepare(student, x)
    assert any("summed" in node.name for node in prepared.graph_module.graph.nodes)
    assert export(prepared, tmp_path / "file", format).parity.relative_error <= 1e-5


@pytest.mark.parametrize("convention", ["arena", "deploy"])
def test_every_byte_of_the_arena_is_accounted_for(student: Student, convention: str) -> None:
    pytest.importorskip("executorch")
    from redistill.export.executorch import certify

    account = certify(prepare(student, X, convention)).account
    assert account.planned - account.predicted == sum(d.bytes for d in account.differences)
    plain = certify(prepare(Classifier().eval(), X, convention)).account
    assert account.planned < plain.planned / 2
