"""Exported files: each computes what the network does, its arena is the predicted one, and bad input leaves no file."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from redistill import RedistillError, transform
from redistill.cli import run
from redistill.config.files import load, resolved
from redistill.config.settings import ClassifierConfig
from redistill.export import ExportError, MissingExtraError, export, make_int8, prepare
from redistill.export import executorch as et
from redistill.export import onnx as onnx_format
from redistill.export import pt2 as pt2_format
from redistill.export.__main__ import main
from redistill.export.calibration import calibration_batches
from redistill.export.formats import FORMATS, format_named
from redistill.export.metadata import find_experiment
from redistill.export.parity import int8_bound, relative_error
from redistill.export.rendering import render
from redistill.quantization import quantize
from redistill.quantization.files import save_program
from tests.trainers.small_networks import small_resnet

pytest.importorskip("executorch")
pytest.importorskip("torchao")
pytest.importorskip("onnxruntime")

IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = ("--set", "data.image_size=16")
MAP = 16 * 16 * 4  # bytes of one channel


class Activations(nn.Module):
    """Each activation that ExecuTorch has no kernel for, a gate, a shortcut that lives on, and a view."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.hardswish, self.silu, self.hardsigmoid = nn.Hardswish(), nn.SiLU(inplace=True), nn.Hardsigmoid()
        self.inner = nn.Conv2d(8, 8, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.classify = nn.Linear(8, 4)

    def forward(self, x):
        x = self.hardswish(self.stem(x))
        x = x + torch.relu(self.inner(self.silu(self.inner(x))))
        x = x * self.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.classify(torch.flatten(x.mean((2, 3), keepdim=True), 1))


class Branches(nn.Module):
    """One wide map is kept while the other branch passes a wider one still, which could have come first."""

    def __init__(self):
        super().__init__()
        self.wide, self.wider, self.narrow = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 1, 1)

    def forward(self, x):
        kept, passing = self.wide(x), self.narrow(self.wider(x))
        return kept.mean((1, 2, 3)) + passing.mean((1, 2, 3))


class ReadsItsInputLater(nn.Module):
    def forward(self, x):
        return torch.relu(x.flatten(1)).mean() + torch.sigmoid(x).mean()


class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"sorting": Sorting()})

    def forward(self, x):
        return self.inner["sorting"](x)


class Sorting(nn.Module):
    def forward(self, x):
        return torch.sort(x, dim=-1).values


def prepared(module, convention="deploy", **options):
    torch.manual_seed(0)
    return prepare(module().eval() if isinstance(module, type) else module, (IMAGE,), convention, **options)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return transform(
        small_resnet().eval(), IMAGE, "2x", taps="auto", model="tests.trainers.small_networks:small_resnet"
    ).eval()


@pytest.fixture(scope="module")
def student_folder(student, tmp_path_factory):
    """A run's folder with the student in it and digits as its data."""
    folder = tmp_path_factory.mktemp("run")
    student.save(folder / "student")
    config = load(ClassifierConfig, "digits/smoke.yaml", ["data.image_size=16"])
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": resolved(config)}))
    return folder


@pytest.mark.parametrize("convention", ["arena", "deploy"])
def test_the_planned_arena_is_the_predicted_one(student, convention):
    about = prepared(student, convention)
    found = et.certify(about)
    assert found.account.planned == about.profile.peak_bytes == et.planned_bytes(found.data)
    assert found.account.differences == ()
    assert found.own_plans["suite"] <= found.own_plans["greedy"]
    assert found.account.planned <= found.own_plans["suite"]
    assert relative_error(et.run_program(found.data, (IMAGE,)), [student(IMAGE).detach()]) < 1e-5


def test_an_activation_without_a_kernel_needs_no_third_map():
    about = prepared(Activations, "arena")
    found = et.certify(about)
    assert about.profile.peak_bytes == 3 * 8 * MAP  # the shortcut, an input and an output
    assert found.account.planned == about.profile.peak_bytes
    assert relative_error(et.run_program(found.data, (IMAGE,)), [about.reference(IMAGE).detach()]) < 1e-5


def test_what_is_more_than_predicted_is_named_to_the_byte():
    pool = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 3, 1))
    found = et.certify(prepared(pool)).account
    indices = 8 * 8 * 8 * 8  # one of 8 bytes for each value of the pooled map
    elsewhere = 3 * MAP - 8 * MAP // 4  # the prediction peaks at the first convolution: its input, not the pooled map
    assert found.planned - found.predicted == indices - elsewhere
    assert sorted(d.bytes for d in found.differences) == [-elsewhere, indices]
    assert "aten.max_pool2d_with_indices within _2" in str(found)


def test_a_better_order_reaches_the_arena():
    plain, ordered = (et.certify(prepared(Branches, "arena", reorder=r)).account for r in (False, True))
    assert plain.planned == (3 + 16 + 24) * MAP
    assert ordered.planned < 28 * MAP
    assert [d.what for d in ordered.differences] in ([], ["alignment to 16 bytes"])


def test_an_input_seen_by_a_view_is_not_overwritten():
    about = prepared(ReadsItsInputLater)
    found = et.certify(about)
    assert found.account.predicted == 2 * 3 * MAP + 4  # the input, another map, and the first mean
    assert found.account.planned - found.account.predicted < 16
    assert relative_error(et.run_program(found.data, (IMAGE,)), [about.reference(IMAGE)]) < 1e-5


def test_a_plan_that_overlaps_is_refused(student, monkeypatch):
    from executorch.exir.error import InternalError

    from redistill.export import planning

    def at_zero(*arguments, **options):
        result = place_offsets(*arguments, **options)
        placed = {spec: replace(where, mem_offset=0) for spec, where in result.spec_dict.items()}
        return replace(result, spec_dict=placed)

    place_offsets = planning.place_offsets
    monkeypatch.setattr(planning, "place_offsets", at_zero)
    with pytest.raises(InternalError, match="overlap"):
        et.certify(prepared(student))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("executorch", et.read_metadata),
        ("onnx", onnx_format.read_metadata),
        ("pt2", pt2_format.read_metadata),
    ],
)
def test_each_format_computes_what_the_student_does_and_says_what_it_is(student, name, read, tmp_path):
    about = prepared(student, metadata={"student": {"budget": "2x"}, "classes": ["a", "b"]})
    exported = export(about, tmp_path / "folder" / "file", name)
    data = exported.path.read_bytes()
    assert exported.parity.relative_error < 1e-5
    assert relative_error(FORMATS[name].run(data, (IMAGE,)), [student(IMAGE).detach()]) < 1e-5
    assert read(data) == about.metadata
    assert len(data) == exported.size


@pytest.fixture(scope="module")
def int8_student(student):
    images = torch.randn(16, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return make_int8(prepared(student), tuple(images))


@pytest.mark.parametrize("name", ["executorch", "onnx"])
def test_int8_files_compute_what_the_int8_network_does(student, int8_student, name, tmp_path):
    exported = export(int8_student, tmp_path / "file", name)
    assert exported.parity.relative_error < 0.05
    assert 0 < exported.quantization_error < 0.2
    assert int8_student.profile.peak_bytes * 4 == prepared(student).profile.peak_bytes


def test_a_student_from_the_command_line(student_folder, tmp_path, capsys):
    out = tmp_path / "student.pte"
    arguments = ["--trust", str(student_folder), "--format", "executorch-portable", "--output", str(out), "--json"]
    assert run(main, arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["account"]["planned"] == found["account"]["predicted"] == found["predicted"]["peak_bytes"]
    assert found["predicted"]["teacher_peak_bytes"] >= 2 * found["account"]["planned"]
    about = et.read_metadata(out.read_bytes())
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["normalisation"] == {"range": [0.0, 1.0], "mean": [0.5], "std": [0.5]}
    assert about["inputs"] == [{"shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert about["student"]["request"]["budget"] == "2x"


def test_int8_is_calibrated_on_the_students_own_data(student_folder, tmp_path, capsys):
    out = tmp_path / "student.pt2"
    quantized = ["--format", "pt2", "--quantize", "int8", "--samples", "16"]
    arguments = ["--trust", str(student_folder), *quantized, "--output", str(out)]
    assert run(main, arguments) == 0
    printed = capsys.readouterr().out
    assert "(deploy, int8)" in printed
    assert "its teacher" in printed
    assert pt2_format.read_metadata(out.read_bytes())["quantization"] == "int8"


def test_int8_is_the_network_that_the_run_has_trained(student, student_folder, tmp_path, capsys):
    run_folder, out = tmp_path / "run", tmp_path / "student.pt2"
    shutil.copytree(student_folder, run_folder)
    trained = copy.deepcopy(student)
    with torch.no_grad():
        trained.fc.bias.add_(1)
    trained.save(run_folder / "int8" / "student")
    program = quantize(trained, torch.randn(8, 1, 3, 16, 16), IMAGE)
    save_program(program, IMAGE, run_folder / "student_int8.pt2")
    arguments = ["--trust", str(run_folder), "--format", "pt2", "--quantize", "int8", "--output", str(out)]
    assert run(main, [*arguments, "--samples", "4"]) == 0
    assert torch.equal(pt2_format.run(out.read_bytes(), (IMAGE,))[0], program(IMAGE))
    assert run(main, [*arguments, "--samples", "4", "--force", "--calibration", "digits/smoke.yaml", *SMALL]) == 0
    assert relative_error(pt2_format.run(out.read_bytes(), (IMAGE,)), [student(IMAGE).detach()]) < 0.2  # rounded now


def test_a_folder_of_images_is_prepared_as_the_students_own(student_folder, tmp_path):
    for name, size in (("one.png", (20, 20)), ("two.jpg", (40, 24))):
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "deep" / name)
    (tmp_path / "notes.txt").write_text("no image")
    batches = calibration_batches(str(tmp_path), find_experiment(student_folder / "student"), IMAGE, samples=8)
    assert [tuple(batch.shape) for batch in batches] == [(1, 3, 16, 16)] * 2
    assert all(torch.allclose(batch, torch.ones(1), atol=0.02) for batch in batches)  # white: (1 - 0.5) / 0.5


def test_a_file_that_computes_something_else_is_not_written(student, tmp_path, monkeypatch):
    silent = replace(FORMATS["pt2"], run=lambda data, inputs: [torch.zeros(1, 10)])
    monkeypatch.setitem(FORMATS, "pt2", silent)
    with pytest.raises(ExportError, match=r"relative error 1\.0e\+00"):
        export(prepared(student), tmp_path / "file", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_all_alike_are_said_to_prove_nothing(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    said = []
    for _ in range(2):
        about = prepare(network, IMAGE)
        said.append(render(export(about, tmp_path / "file", "pt2", force=True), about, network))
        nn.init.zeros_(network[1].weight)
        nn.init.zeros_(network[1].bias)
    assert ["proves nothing" in text for text in said] == [False, True]


def test_an_operator_without_a_kernel_is_named_with_its_module(tmp_path):
    with pytest.raises(ExportError, match=r"no kernel for aten::sort in inner\.sorting"):
        export(prepared(Sorts), tmp_path / "file", "executorch-portable")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"needs onnx; pip install 'redistill\[export\]'"):
        format_named("onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--output", "{there}"], "exists already"),
        (["{run}/nowhere"], "not a student folder"),
        (["{run}", "--quantize", "int8", "--format", "executorch-portable"], "no int8 kernels"),
        (["{run}", "--convention", "eager"], "--convention deploy or arena"),
        (["{run}", "--trust", "--quantize", "int8", "--set", "data.image_size=24"], "calibration images are 3x24x24"),
        (["{run}", "--trust", "--quantize", "int8", "--calibration", "{empty}"], "holds 0 images"),
        (["--model", "torchvision:resnet18", "--quantize", "int8"], "give --calibration"),
        (["{run}", "--trust", "--format", "pt2", "--output", "/proc/nowhere/file"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_with_nothing_written(arguments, message, student_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there, empty = tmp_path / "there.pte", tmp_path / "empty"
    there.write_bytes(b"kept")
    empty.mkdir()
    given = ["--trust", *(a.format(run=student_folder, there=there, empty=empty) for a in arguments)]
    assert run(main, given) == RedistillError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.iterdir()) == [empty, there]
    assert there.read_bytes() == b"kept"


def test_tflite_in_the_interpreter_for_microcontrollers(student, tmp_path):
    pytest.importorskip("litert_torch")
    pytest.importorskip("tflite_micro")
    exported = export(prepared(student), tmp_path / "student.tflite", "tflite")
    assert exported.parity.relative_error < 1e-5
    assert exported.interpreter.activations >= exported.interpreter.live
    assert exported.interpreter.total == exported.interpreter.activations + exported.interpreter.persistent
    assert json.loads((tmp_path / "student.tflite.json").read_text()) == prepared(student).metadata


def test_tflite_keeps_the_scales_and_needs_what_is_predicted(int8_student, tmp_path):
    pytest.importorskip("litert_torch")
    pytest.importorskip("tflite_micro")
    exported = export(int8_student, tmp_path / "student.tflite", "tflite")
    assert exported.parity.relative_error < 0.02
    assert exported.interpreter.live == exported.interpreter.activations == int8_student.profile.peak_bytes


@pytest.mark.parametrize(("rounding", "bound"), [(0.01, 0.1), (0.2, 0.4), (1.5, 0.5)])
def test_int8_kernels_may_differ_as_int8_differs_from_float(rounding, bound):
    assert int8_bound(rounding) == bound
