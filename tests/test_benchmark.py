"""The benchmark: figures of a student beside its teacher, on networks small enough to count by hand."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from redistill import profile, transform
from redistill.cli import run
from redistill.errors import RedistillError, StudentError
from redistill.studies.benchmark import Options, Pair, PairedTiming, Timing, benchmark, make_pair, read_pair, time_pair
from redistill.studies.benchmark.__main__ import main
from redistill.studies.benchmark.backends import BACKENDS, Backend, prepare
from redistill.studies.benchmark.networks import count_macs, size_on_disk
from redistill.studies.benchmark.results import DevicePeak, seconds_per_image, to_json
from redistill.studies.benchmark.tables import render

MODEL = "tests.test_benchmark:small"
ARGUMENTS = ["--backends", "eager", "--repeats", "5", "--seconds", "1"]


def small() -> nn.Module:
    """Four convolutions whose grids halve three times."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *stage(16, 16), *stage(16, 24), *stage(24, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def another() -> nn.Module:
    """No student of ``small`` was made of this."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2))


@pytest.fixture(scope="module")
def pair() -> Pair:
    made = make_pair(MODEL, "4x", shape="3x32x32")
    assert not made.student.taps
    tapped = transform(made.teacher, made.inputs(), "4x", taps="auto", model=MODEL).eval()
    return replace(made, student=tapped)


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    run_folder = tmp_path_factory.mktemp("run")
    pair.student.save(run_folder / "student")
    return run_folder


@pytest.fixture(scope="module")
def result(pair):
    return benchmark(pair, Options(("eager",), (1, 2), repeats=6, seconds=5))


def test_peaks_are_those_of_the_profiles_and_of_the_meter(pair, result):
    (x,) = pair.inputs()
    for network, model in ((result.teacher, pair.teacher), (result.student, pair.student)):
        assert network.peaks == {c: profile(model, x, c).peak_bytes for c in ("deploy", "arena", "graph", "eager")}
    assert result.teacher.measured == result.teacher.peaks["eager"]
    assert result.student.measured == result.student.peaks["graph"]
    assert result.teacher.peaks["deploy"] >= 4 * result.student.peaks["deploy"]


def test_work_and_size_are_counted(pair, result):
    convolutions = 3 * 16 * 9 * 32**2 + 16 * 16 * 9 * 16**2 + 16 * 24 * 9 * 8**2 + 24 * 32 * 9 * 4**2
    assert count_macs(pair.teacher, pair.inputs()) == convolutions + 32 * 10
    assert result.student.macs == pair.student.profile.macs
    weights = sum(x.nbytes for x in pair.teacher.state_dict().values())
    assert 0 < size_on_disk(pair.teacher) - weights < 4000  # the header
    assert result.teacher.parameters == sum(p.numel() for p in pair.teacher.parameters())


def test_the_red_blocks_are_what_the_student_has_more(pair, result):
    more = result.student.parameters - result.teacher.parameters
    assert more > 0
    assert result.red.parameters == pytest.approx(more / result.student.parameters)
    assert 0 < result.red.weight_bytes < 1
    assert 0 < result.red.macs < 1
    assert 0 < result.red.peak <= 1


def test_teacher_and_student_are_called_in_turn():
    calls: list[str] = []
    teacher, student = time_pair(lambda: calls.append("t"), lambda: calls.append("s"), repeats=4, seconds=60)
    assert calls == ["t", "s"] * 7  # three of them to warm up
    assert len(teacher.milliseconds) == len(student.milliseconds) == 4


def test_no_further_call_is_made_when_time_is_over_but_five_are():
    teacher, _ = time_pair(lambda: time.sleep(0.002), lambda: None, repeats=1000, seconds=0)
    assert len(teacher.milliseconds) == 5
    assert teacher.minimum >= 2


def test_ratio_and_spread():
    timing = PairedTiming("eager", 1, 1, Timing((4.0, 6.0, 8.0, 100.0)), Timing((2.0, 2.0, 2.0, 50.0)))
    assert timing.ratio == 7 / 2
    assert timing.quartiles == (2.0, 3.25)
    assert not timing.is_steady
    assert timing.teacher.minimum == 4
    assert Timing(tuple(range(1, 102))).p95 == 96
    assert seconds_per_image(Timing((20.0,)), batch=4, steps=1000) == 5


def test_the_allocator_s_peak_names_its_workspace():
    assert DevicePeak(allocated=5000, metered=3000).workspace == 2000


def test_the_table_and_the_json_say_the_same(result):
    text, data = render(result), json.loads(json.dumps(to_json(result)))
    assert "RED blocks" in text
    assert "PyTorch eager      2" in text
    assert [t["batch"] for t in data["timings"]] == [1, 2]
    assert data["timings"][0]["ratio"] == result.timings[0].ratio
    assert f"{result.timings[0].ratio:.2f}x" in text
    assert data["student"]["peaks"]["deploy"] == result.student.peaks["deploy"]
    assert "Time per image" not in text


def test_a_denoiser_is_told_per_step_and_per_image():
    spec = "redistill:ddpm_unet?width=32&multipliers=[1,2]&attention_levels=[]&blocks=1"
    options = Options(("eager",), (1,), repeats=5, seconds=1, steps=100)
    found = benchmark(make_pair(spec, "2x", shape="3x16x16"), options)
    text, timing = render(found), to_json(found)["timings"][0]
    assert "Time per image, 100 steps" in text
    assert "per image" in text
    assert timing["teacher"]["seconds_per_image"] == pytest.approx(timing["teacher"]["median"] / 10)


@pytest.mark.parametrize("name", ["compile", "onnxruntime", "executorch"])
def test_backends_compute_what_eager_does(name):
    for package in BACKENDS[name].packages:
        pytest.importorskip(package)
    if name == "compile" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    run_once, deviation = prepare(name, model, (torch.randn(2, 3, 8, 8),), threads=1)
    assert deviation < 1e-5
    run_once()


def test_a_backend_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(BACKENDS, "wrong", Backend("Wrong", lambda model, inputs, threads: lambda: model(*inputs) + 1))
    with pytest.raises(RedistillError, match="computes something else"):
        prepare("wrong", nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 8, 8),), 1)


def test_what_cannot_be_had_is_left_out_with_its_reason(pair, monkeypatch):
    absent = Backend("Absent", lambda *_: lambda: None, packages=("no_such_package",))
    broken = Backend("Broken", lambda *_: 1 / 0)
    monkeypatch.setattr("redistill.studies.benchmark.measuring.BACKENDS", {"absent": absent, "broken": broken})
    monkeypatch.setattr("redistill.studies.benchmark.backends.BACKENDS", {"absent": absent, "broken": broken})
    found = benchmark(pair, Options(repeats=5, seconds=1))
    assert found.timings == ()
    assert found.skipped["absent"] == "absent needs no_such_package; pip install 'redistill[export]'"
    assert "ZeroDivisionError" in found.skipped["broken"]
    assert "Left out" in render(found)
    with pytest.raises(RedistillError, match="needs no_such_package"):
        benchmark(pair, Options(("absent",)))


def test_the_command_reads_a_run_and_writes_what_is_asked(folder, tmp_path, capsys):
    plot, data = tmp_path / "result.png", tmp_path / "result.json"
    assert (
        run(main, ["--trust", str(folder), *ARGUMENTS, "--batches", "1", "--plot", str(plot), "--json", str(data)]) == 0
    )
    assert "Peak activation memory" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(data.read_text())["title"] == MODEL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "result.png"]


def test_another_teacher_is_refused(folder):
    with pytest.raises(StudentError, match="made of another architecture"):
        read_pair(folder, "tests.test_benchmark:another")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing"], 2, "there is no student in missing"),
        (["{run}", "--budget", "2x"], 2, "--budget makes a student"),
        (["{run}", "--backends", "tensorrt"], 2, "there is no backend 'tensorrt'"),
        (["{run}", "--plot", "{run}/student/student.yaml"], 2, "--force"),
        (["{run}", "--steps", "10"], 2, "--steps is for denoisers"),
        (["{run}", "--device", "cuda"], 2, "no CUDA device"),
        (["--model", "torchvision:resnet19"], 2, "resnet1"),
        (["--model", MODEL, "--input", "3x32x32", "--budget", "1KiB"], 3, "best that can be had"),
    ],
)
def test_bad_input_is_one_line(arguments, code, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(main, ["--trust", *(argument.format(run=folder) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
