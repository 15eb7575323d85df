"""The comparison: which runs it makes, what it computes, and that it keeps what is done."""

import json

import pytest

from redistill.trainers import accuracy
from redistill.trainers.accuracy import REFERENCE, AccuracyJudge, recovered
from redistill.trainers.comparison import choose_judge, read_comparison
from redistill.trainers.config import packaged
from redistill.trainers.contest import ComparisonConfig, GridConfig, Result, Row, compare, rows

GRID = GridConfig(
    plans={"4x": ("student.budget=4x",), "8x": ("student.budget=8x",)},
    starts={"scratch": ("student.start=scratch",), "teacher": ("student.start=teacher",)},
    methods=("none", "red+kd"),
)
CONFIG = ComparisonConfig(experiment="digits/smoke.yaml", seeds=(0, 1), grids=(GRID, GRID))


def test_rows_are_the_reference_and_each_combination_once():
    found = rows(CONFIG, AccuracyJudge.reference)
    assert found[0].methods == REFERENCE
    assert len(found) == 1 + 2 * 2 * 2
    assert found[-1].settings == ("student.budget=8x", "student.start=teacher", "distillation.methods=red+kd")


@pytest.mark.parametrize("name", packaged("comparison"))
def test_packaged_comparisons_are_read(name, tmp_path):
    judge = choose_judge(read_comparison(name, []), tmp_path)
    found = rows(judge.config, judge.reference)
    assert len(found) > 3
    assert all(judge.settings(row, 0) for row in found)


def test_the_share_of_the_gap():
    def result(methods, start, *top1):
        row = Row("1x" if methods == REFERENCE else "4x", start, methods, ())
        return Result(row, tuple({"top1": value} for value in top1))

    results = [
        result(REFERENCE, "teacher", 90.0, 92.0),
        result("none", "scratch", 80.0, 82.0),
        result("kd", "teacher", 86.0, 86.0),
    ]
    assert recovered(results[2], results, "scratch") == pytest.approx(0.5)
    assert recovered(results[1], results, "scratch") == 0
    assert recovered(results[0], results, "scratch") is None
    assert results[0].spread("top1") == pytest.approx(2**0.5)


def test_finished_runs_are_kept(tmp_path, monkeypatch):
    calls = []

    def fake(settings, place, resume):
        calls.append((settings.run.seed, settings.teacher.weights))
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps({"last": {"test": {"top1": 80.0 + len(calls)}}}))

    monkeypatch.setattr(accuracy, "train", fake)
    first = compare(AccuracyJudge(CONFIG, tmp_path))
    assert len(calls) == 18
    assert {weights for _, weights in calls} == {str(tmp_path / "teacher.safetensors")}
    assert compare(AccuracyJudge(CONFIG, tmp_path)) == first
    assert len(calls) == 18
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    table = (tmp_path / "table.md").read_text()
    assert "| 4x | scratch | none | 83.50 ± 0.71 |" in table
