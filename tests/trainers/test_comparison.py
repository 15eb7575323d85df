"""The comparison: which runs it makes, what it computes, and that it keeps what is done."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from redistill.config.files import packaged, resolved
from redistill.config.settings import RunConfig
from redistill.errors import CheckpointError, RedistillError, TapError
from redistill.studies.comparison import classifiers as accuracy
from redistill.studies.comparison.__main__ import choose_judge, read_comparison
from redistill.studies.comparison.classifiers import REFERENCE, AccuracyJudge, recovered
from redistill.studies.comparison.frontier import best_of_students, times_less
from redistill.studies.comparison.making import compare, finish_together
from redistill.studies.comparison.runs import ComparisonConfig, GridConfig, Result, Row, rows
from redistill.studies.comparison.tables import render_table
from redistill.trainers.folder import RunFolder

GRID = GridConfig(
    plans={"4x": ("student.budget=4x",), "8x": ("student.budget=8x",)},
    starts={"scratch": ("student.start=scratch",), "teacher": ("student.start=teacher",)},
    methods=("none", "red+kd"),
)
CONFIG = ComparisonConfig(experiment="digits/smoke.yaml", seeds=(0, 1), grids=(GRID, GRID))


def test_rows_are_the_reference_and_each_combination_once(tmp_path):
    found = rows(CONFIG, AccuracyJudge(CONFIG, tmp_path).reference)
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


def test_a_grid_may_have_seeds_and_the_reference_settings_of_its_own(tmp_path):
    grids = (GRID, replace(GRID, plans={"2x": ("student.budget=2x",)}, seeds=(5,)))
    config = replace(CONFIG, grids=grids, reference=("recipe.epochs=3",))
    judge = AccuracyJudge(config, tmp_path)
    found = rows(config, judge.reference)
    assert judge.settings(found[0], 0).recipe.epochs == 3
    assert [judge.seeds(row) for row in (found[0], found[1], found[-1])] == [(0, 1), (0, 1), (5,)]
    assert Result(found[-1], ({"top1": 71.234},)).show("top1") == "71.23 (1 seed)"


@pytest.mark.parametrize(("given", "teacher"), [((), "teacher.safetensors"), (("teacher.weights=mine.pt",), "mine.pt")])
def test_the_teacher_is_trained_in_the_folder_unless_it_is_given(given, teacher, tmp_path):
    judge = AccuracyJudge(replace(CONFIG, settings=given), tmp_path)
    settings = judge.settings(judge.reference, 0)
    assert settings.teacher.weights in (teacher, str(tmp_path / teacher))


def test_plans_are_drawn_from_mild_to_hard():
    assert sorted(["9.6x", "hard", "2x", "25%", "512KiB", "16x"], key=times_less) == [
        "2x", "25%", "9.6x", "16x", "hard", "512KiB",
    ]  # fmt: skip


def test_runs_are_made_in_several_processes(tmp_path):
    short = ["recipe.epochs=1", "recipe.batch_size=16", "data.train_limit=32", "data.test_limit=20", "run.brief=true"]
    settings = [*short, "teacher.recipe.epochs=1", "teacher.recipe.batch_size=16", "student.budget=4x"]
    grid = GridConfig(plans={"4x": ()}, starts={"scratch": ("student.start=scratch",)}, methods=("none", "kd"))
    config = ComparisonConfig(experiment="digits/smoke.yaml", settings=tuple(settings), seeds=(0,), grids=(grid,))
    judge = AccuracyJudge(config, tmp_path)
    finish_together(judge, jobs=2)
    assert len(list(tmp_path.glob("*/seed-0/summary.json"))) == 3
    assert len(compare(judge)) == 3


SLEEPERS = """
import time
from pathlib import Path
from redistill.studies.comparison.classifiers import AccuracyJudge
from redistill.studies.comparison.making import finish_together
from redistill.studies.comparison.runs import ComparisonConfig, GridConfig
from redistill.studies.comparison.tables import render_table

class Sleepers(AccuracyJudge):
    def score(self, row, seed):
        return {}

    def finish(self, row, seed):
        print("begun", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    grid = GridConfig(plans={"4x": ()}, starts={"scratch": ()}, methods=("none", "kd"))
    finish_together(Sleepers(ComparisonConfig(grids=(grid,)), Path(".")), jobs=2)
"""


def test_a_killed_comparison_takes_its_runs_along(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as comparison:
        begun = [comparison.stdout.readline() for _ in range(2)]
        comparison.kill()
        rest, _ = comparison.communicate(timeout=30)  # ends when the last who could write has ended
    assert begun == ["begun\n"] * 2
    assert not rest


MORTALS = """
import os, signal, sys
from pathlib import Path
from redistill.config.settings import ExperimentConfig
from redistill.errors import RedistillError
from redistill.studies.comparison.making import finish_together
from redistill.studies.comparison.runs import ComparisonConfig, GridConfig, Judge

class Mortals(Judge):
    kind = ExperimentConfig
    def __init__(self, config, folder, *, trust=False):
        super().__init__(config, folder, trust=trust)
        from redistill.studies.comparison.runs import Row
        self.reference = Row("1x", "", "reference", ())
    def train(self, settings, place, *, resume): ...
    def score(self, row, seed): return {}
    def render(self, results): return ""
    def draw(self, results): ...
    def finish(self, row, seed):
        mark = self.folder / f"{row.name}-begun"
        if row.methods == "full":
            raise OSError(28, "No space left on device")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"{row.name}-done").touch()
        return self.folder

if __name__ == "__main__":
    methods = tuple(sys.argv[2:])
    grid = GridConfig(plans={"4x": ()}, starts={"scratch": ()}, methods=methods)
    try:
        finish_together(Mortals(ComparisonConfig(seeds=(0,), grids=(grid,)), Path(sys.argv[1])), jobs=2)
        print("all done")
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize(("methods", "said"), [(("kd", "at"), "all done"), (("full", "kd"), "No space left on device")])
def test_killed_workers_and_full_disks_do_not_end_the_others(tmp_path, methods, said):
    script = tmp_path / "mortals.py"
    script.write_text(MORTALS)
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *methods], capture_output=True, text=True, timeout=300
    )
    assert said in ended.stdout
    assert "Traceback" not in ended.stderr
    assert {path.name for path in tmp_path.glob("*-done")} >= {f"4x-scratch-{methods[-1]}-done"}


def test_finished_runs_are_kept(tmp_path, monkeypatch):
    calls = []

    def fake(settings, place, resume, trust):
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


def test_students_are_compared_and_lines_chosen_by_validation(tmp_path):
    students = {"planned": (), "smaller image": ("student.lever=resize",)}
    config = replace(CONFIG, grids=(replace(GRID, students=students),))
    judge = AccuracyJudge(config, tmp_path)
    found = rows(config, judge.reference)
    assert len(found) == 1 + 2 * 2 * 2 * 2
    assert len({row.name for row in found}) == len(found)
    assert judge.settings(found[-1], 0).student.lever == "resize"

    def result(methods, validation, test):
        costs = {"peak_bytes": 2048.0, "macs": 3e6}
        return Result(
            Row("4x", "teacher", methods, (), student="planned"), ({"validation": validation, "top1": test, **costs},)
        )

    results = [result("none", 80.0, 90.0), result("kd", 85.0, 70.0)]
    assert [point.row.methods for point in best_of_students(results)["planned"]] == ["kd"]
    table = render_table(results, {id(one): None for one in results})
    assert "| plan | student | start | methods | validation top-1 |" in table
    assert "| 2.000 KiB | 3.0 |" in table
    assert "latency" not in table


def test_a_table_is_made_of_what_is_done(tmp_path):
    judge = AccuracyJudge(CONFIG, tmp_path)
    for row in rows(CONFIG, judge.reference)[:2]:
        place = judge.place(row, 1)
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps({"last": {"test": {"top1": 80.0}}}))
    results = compare(judge, only_finished=True)
    assert [len(result.scores) for result in results] == [1, 1]
    assert "80.00 (1 seed)" in (tmp_path / "table.md").read_text()


def test_what_does_not_go_together_is_named_below_the_table(tmp_path, monkeypatch):
    def fake(settings, place, resume, **options):
        if "reentry" in settings.distillation.methods:
            raise TapError("reentry: the grids never meet")
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps({"last": {"test": {"top1": 80.0}}}))

    monkeypatch.setattr(accuracy, "train", fake)
    config = replace(CONFIG, seeds=(0,), grids=(replace(GRID, methods=("reentry", "kd")),))
    assert len(compare(AccuracyJudge(config, tmp_path))) == 1 + 4
    table = (tmp_path / "table.md").read_text()
    assert "- 4x-scratch-reentry: reentry: the grids never meet" in table
    assert table.count("never meet") == 4


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"methods": ("kdd",)}, "did you mean 'kd'"),
        ({"methods": ("nowhere:Method",)}, "--trust"),
        ({"plans": {"4x": ("student.bugdet=4x",)}}, "did you mean 'budget'"),
        ({"plans": {"4x": ("student.budget=4y",)}}, "cannot read the budget '4y'"),
        ({"plans": {"4 x": ("student.budget=4x",), "4_x": ("student.budget=3x",)}}, "two rows are named 4_x"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused_at_the_start(grid, words, tmp_path):
    with pytest.raises(RedistillError, match=words):
        AccuracyJudge(replace(CONFIG, grids=(replace(GRID, **grid),)), tmp_path).check()


def test_finished_runs_of_other_settings_are_no_part_of_a_comparison(tmp_path):
    judge = AccuracyJudge(CONFIG, tmp_path)
    row = rows(CONFIG, judge.reference)[1]
    folder = RunFolder(judge.place(row, 1))
    folder.path.mkdir(parents=True)
    folder.summary.write_text("{}")
    made = resolved(replace(judge.settings(row, 1), run=RunConfig(folder="elsewhere", seed=1)))
    folder.write_config({key: value for key, value in made.items() if key != "quantization"}, {})
    judge.check()
    changed = AccuracyJudge(replace(CONFIG, settings=("recipe.epochs=77",)), tmp_path)
    with pytest.raises(CheckpointError, match=r"seed-1 was made otherwise: recipe\.epochs \(\d+, then 77\)"):
        changed.check()


def test_a_table_needs_a_finished_run_though_not_the_reference(tmp_path):
    judge = AccuracyJudge(CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match="no run of this comparison is done in"):
        compare(judge, only_finished=True)
    assert not list(tmp_path.iterdir())
    place = judge.place(rows(CONFIG, judge.reference)[2], 0)
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"last": {"test": {"top1": 80.0}}}))
    assert len(compare(judge, only_finished=True)) == 1
