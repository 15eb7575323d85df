import json
import os
import subprocess
import sys

import pytest

import redistill
from redistill.__main__ import main as redistill_main
from redistill.cli import run
from redistill.commands.profile import main as analyze
from redistill.commands.transform import main as transform

MODEL = ["--model", "redistill:mobilenet_v2_strided?strides=[1,1,2,2,2,1,2,1]&num_classes=10", "--input", "3x64x64"]


def test_transform_prints_a_report_and_writes_what_is_asked(tmp_path, capsys):
    page, plot, out, result = (str(tmp_path / n) for n in ("report.html", "report.png", "student", "result.json"))
    written = ["--html", page, "--plot", plot, "--output", out, "--json", result]
    code = run(transform, [*MODEL, "--taps", "auto", *written, "--measure"])
    printed = capsys.readouterr()
    assert code == 0
    assert "Peak activation memory" in printed.out
    assert "budget met" in printed.out
    assert f"student written to {out}" in printed.out
    assert "measured while running" in printed.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.png", "result.json", "student"]
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["teacher"]["peak_bytes"] / data["student"]["peak_bytes"] == pytest.approx(data["ratio"])
    assert data["ratio"] >= 4
    assert {"peak_bytes", "macs", "parameters"} <= data["student"].keys()
    assert {"stage", "grid", "factor"} <= data["plan"][0].keys()
    assert {"student", "teacher", "grid"} <= data["taps"][0].keys()
    assert data["convention"] == "deploy"
    assert data["seconds"] > 0


def test_json_alone_is_all_that_standard_output_holds(capsys):
    assert run(transform, [*MODEL, "--json", "--factors", "4,4,4,2,1", "--taps", "none"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [stage["factor"] for stage in data["plan"]] == [4, 4, 4, 2, 1]


def test_analyze_profiles_and_checks_itself(tmp_path, capsys):
    page = str(tmp_path / "memory.html")
    assert run(analyze, [*MODEL, "--convention", "graph", "--measure", "--html", page]) == 0
    printed = capsys.readouterr()
    assert "(equal)" in printed.err
    assert (tmp_path / "memory.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "torchvision:resnet19"], 2, "resnet1"),
        (["--model", "nowhere:resnet18"], 2, "nowhere"),
        ([*MODEL, "--weights", "missing.pth"], 2, "missing.pth"),
        ([*MODEL[:2], "--input", "1x64x64"], 2, "1x64x64"),
        ([*MODEL[:2], "--input", "3xabc"], 2, "3xabc"),
        ([*MODEL, "--budget", "abc"], 2, "accepted are"),
        ([*MODEL, "--budget", "1KiB"], 3, "the best that can be had"),
        ([*MODEL, "--factors", "4,x"], 2, "whole numbers"),
        ([*MODEL, "--taps", "missing.yaml"], 2, "missing.yaml"),
        ([*MODEL, "--output", "/proc/nowhere/student"], 2, "/proc/nowhere/student"),
        (["--model", "test_cli:data_dependent"], 2, "test_cli.py"),
        (["--model", "test_cli:ends"], 2, "cannot build test_cli:ends"),
        ([*MODEL, "--factors", ""], 2, "cannot read the factors ''"),
        ([*MODEL, "--calibration", ""], 2, "has no name"),
        ([*MODEL, "--output", "/"], 2, "is not a student"),
        ([*MODEL, "--output", ""], 2, "to no name"),
        ([*MODEL, "--plot", ""], 2, "to no name"),
        ([*MODEL, "--json", "/"], 2, "give the name of a file"),
        ([*MODEL, "--json", "nowhere/page.json"], 2, "nowhere is not a writable folder"),
    ],
)
def test_bad_input_is_one_line_with_nothing_written(arguments, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    written = [] if "--output" in arguments else ["--output", "student", "--html", "page.html"]
    assert run(transform, [*arguments, *written]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_places_are_looked_at_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("redistill.commands.transform.load", lambda given: pytest.fail("the work has begun"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for option, place in (("--output", "other"), ("--html", "none/page.html"), ("--json", "other")):
        assert run(transform, [*MODEL, option, str(tmp_path / place)]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def ends():
    raise SystemExit(3)


def data_dependent():
    from torch import nn

    class DataDependent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    return DataDependent()


def test_the_version_is_said(capsys):
    assert redistill_main(["--version"]) == 0
    assert capsys.readouterr().out == f"{redistill.__version__}\n"


def test_the_module_runs_as_a_command_and_teaches():
    shown = subprocess.run(
        [sys.executable, "-m", "redistill.transform", "--help"], capture_output=True, text=True, check=True
    )
    assert "exit codes" in shown.stdout
    assert "conventions of peak memory" in shown.stdout
    assert shown.stderr == ""
