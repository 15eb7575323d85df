"""Int8 networks run in parts: equal to the whole to the bit, and nothing is mistaken for the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from redistill import Student, profile, transform
from redistill.errors import QuantizationError
from redistill.export.exporting import export
from redistill.export.preparation import PreparedModel, make_int8, prepare
from tests.graphs import image

pytest.importorskip("executorch")
pytest.importorskip("torchao")

from redistill.quantization import quantize
from redistill.quantization.lowering import lower_to_aten
from redistill.quantization.parts import divide

X = image(3, 1, 16)
IMAGES = tuple(torch.randn(8, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


class Branches(nn.Module):
    """Like operations on one map with other weights, a pad, a pool, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3), nn.ReLU6())
        self.left, self.right = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.classify = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.left(x) + x, torch.relu(self.right(x))], 1)
        return self.classify(self.pool(x).mean((2, 3)))


def student_of(network: nn.Module) -> Student:
    return transform(network.eval(), X, "2x", levers="patches").eval()


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return student_of(Branches())


@pytest.fixture(scope="module")
def int8(student: Student) -> PreparedModel:
    return make_int8(prepare(student, X), IMAGES)


def test_the_parts_give_what_the_whole_does_to_the_bit(student: Student) -> None:
    prepared = prepare(student, X)
    whole = quantize(prepared.whole, IMAGES, prepared.inputs)
    parts = make_int8(prepared, IMAGES, whole).int8
    assert parts is not None
    assert len(parts.graph.nodes) > 1.5 * len(whole.graph.nodes)
    for batch in IMAGES:
        assert torch.equal(parts(batch), whole(batch))
    assert len({float(value) for value in whole(IMAGES[0]).flatten()}) > 5


def test_memory_is_counted_of_the_parts(student: Student, int8: PreparedModel) -> None:
    assert int8.profile.peak_bytes * 4 == prepare(student, X).profile.peak_bytes
    assert int8.profile.peak_bytes * 1.5 < profile(int8.whole, int8.inputs, "deploy", "int8").peak_bytes


@pytest.mark.parametrize("format", ["pt2", "executorch"])
def test_a_file_of_int8_parts(int8: PreparedModel, tmp_path: Path, format: str) -> None:
    exported = export(int8, tmp_path / "file", format)
    assert exported.parity.relative_error < 0.01
    assert 0 < exported.quantization_error < 0.2


def test_the_parts_of_another_student_are_refused(student: Student) -> None:
    whole = quantize(prepare(student, X).whole, IMAGES, (X,))
    torch.manual_seed(1)
    other = prepare(student_of(Branches()), X)
    with pytest.raises(QuantizationError, match="the int8 network has other weights for conv2d"):
        divide(whole, lower_to_aten(other.graph_module, other.inputs))
    branches = prepare(student_of(nn.Sequential(Branches(), nn.ReLU())), X)
    with pytest.raises(QuantizationError, match=r"has (no|other weights for) \w+; it is not of the student in parts"):
        divide(whole, lower_to_aten(branches.graph_module, branches.inputs))


def test_every_reader_of_a_value_dequantises_it_for_itself(int8: PreparedModel) -> None:
    """Backends take an operation with what dequantises its inputs; two that share that are tied to each other."""
    assert int8.int8 is not None
    target = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    found = int8.int8.graph.find_nodes(op="call_function", target=target)
    assert len({n.args[0] for n in found}) < len(found)
    assert all(len(n.users) == 1 for n in found)
