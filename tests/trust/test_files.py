"""Files: a student is replaced in one step, the user's own stay, and nothing is written through a link."""

import os

import pytest
import torch

import redistill
from redistill import recipe
from redistill.errors import RedistillError, StudentError
from redistill.internal import files
from redistill.models import load_model
from redistill.trainers.checkpoint import Checkpoints, sole_writer
from redistill.trainers.record import Record

MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def students():
    torch.manual_seed(0)
    teacher = load_model(MODEL, "random")
    return [redistill.transform(teacher, IMAGE, budget, model=MODEL).eval() for budget in ("2x", "1.5x")]


class Stopped(BaseException):
    """A kill, as far as what is on the disk goes."""


def test_a_save_that_is_stopped_anywhere_leaves_the_old_student_or_the_new(students, tmp_path, monkeypatch):
    old, new = students
    steps = 0
    for stop_at in range(40):
        folder = tmp_path / str(stop_at) / "student"
        old.save(folder)
        (folder / "notes.txt").write_text("mine")
        steps = 0

        def stopping(original, stop_at=stop_at):
            def call(*given, **named):
                nonlocal steps
                steps += 1
                if steps == stop_at + 1:
                    raise Stopped
                return original(*given, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping(os.replace))
            patch.setattr(os, "fsync", stopping(os.fsync))
            patch.setattr(recipe, "write_atomically", stopping(recipe.write_atomically))
            try:
                new.save(folder)
                finished = True
            except Stopped:
                finished = False
        loaded = redistill.load_student(folder)
        expected = new if loaded.provenance.request == new.provenance.request else old
        assert expected is new or not finished
        assert torch.equal(loaded.eval()(IMAGE), expected(IMAGE))
        assert (folder / "notes.txt").read_text() == "mine"
        if finished:
            break
    assert steps > 4
    assert finished


def test_a_link_is_never_written_through(students, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("theirs")
    (tmp_path / "student").symlink_to(elsewhere)
    with pytest.raises(StudentError, match="is a link"):
        students[0].save(tmp_path / "student")
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "log.jsonl", "checkpoints"):
        (run / name).symlink_to(elsewhere / "file" if name != "checkpoints" else elsewhere)
    with pytest.raises(RedistillError, match="is a link"), sole_writer(run):
        pass
    with pytest.raises(RedistillError, match="is a link"):
        Record(run).write("train", 1, {})
    with pytest.raises(RedistillError, match="is a link"):
        Checkpoints(run / "checkpoints", 2).save(1, {})
    with pytest.raises(RedistillError, match="is a link"):
        files.write_atomically(run / "log.jsonl", b"")
    assert (elsewhere / "file").read_text() == "theirs"
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


@pytest.mark.parametrize("harm", ["nan", "int8", "complex"])
def test_weights_that_are_no_finite_numbers_are_refused(students, tmp_path, harm):
    from safetensors.torch import load_file, save_file

    folder = students[0].save(tmp_path / "student")
    weights = load_file(folder / recipe.WEIGHTS)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    harmed = {"nan": weights[name] * float("nan"), "int8": weights[name].to(torch.int8), "complex": weights[name] + 0j}
    save_file({**weights, name: harmed[harm]}, folder / recipe.WEIGHTS)
    found = files.checksum(folder / recipe.WEIGHTS)
    raw = recipe.read_yaml(folder / recipe.RECIPE)
    (folder / recipe.RECIPE).write_text(recipe.sealed({**raw, "weights": {**raw["weights"], "sha256": found}}))
    with pytest.raises(StudentError, match=name):
        redistill.load_student(folder)


def test_a_recipe_is_sealed(students, tmp_path):
    folder = students[0].save(tmp_path / "student")
    text = (folder / recipe.RECIPE).read_text()
    (folder / recipe.RECIPE).write_text(text.replace("factor: 2", "factor: 4", 1))
    with pytest.raises(StudentError, match="checksum"):
        redistill.load_student(folder)
