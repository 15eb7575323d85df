"""What cannot be carried out is said before anything is trained, and what means nothing is not taken for something."""

import pytest
import torch

import redistill
from redistill.errors import RedistillError
from redistill.models import load_model
from redistill.trainers.classifier import main

MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult="


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("student.weights=/nope", "/nope"),
        ("student.model=redistill:nope", "no model 'nope'"),
        ("student.budget=0x", "0x"),
        ("student.convention=zzz", "zzz"),
        ("student.objective=mac", "did you mean 'macs'"),
        ("student.taps=/nope", "/nope"),
        ("student.folder=/nope", "/nope"),
        ("teacher.start=/nope", "/nope"),
        ("teacher.weights=/tmp", "/tmp is a folder; give the file"),
        ("teacher.weights=/dev/null/a.pt", "/dev/null is not a writable folder"),
        ("teachers={second: {weights: /nope}}", "teachers.second"),
        ("run.folder=../../x\x00", "error"),
    ],
)
def test_settings_are_refused_before_a_teacher_is_trained(tmp_path, capsys, setting, words):
    given = ["teacher.recipe.epochs=1", f"run.folder={tmp_path / 'run'}", setting]
    assert main([word for text in given for word in ("--set", text)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["student.budget=1KiB"], "the best that can be had"),
        (["student.folder={folder}"], "is not a student folder"),
        (["student.budget=null", "distillation.methods=at"], "need a student made by redistill.transform"),
        (["distillation.task=0", "distillation.methods=none"], "leave nothing to learn from"),
        (["data.channels=1"], "does not run on images of 1x32x32"),
    ],
)
def test_students_are_tried_before_a_teacher_is_trained(tmp_path, capsys, monkeypatch, settings, words):
    monkeypatch.setattr("redistill.trainers.teachers.train_teacher", lambda *given: pytest.fail("is being trained"))
    given = [f"run.folder={tmp_path / 'run'}", *(text.format(folder=tmp_path) for text in settings)]
    assert main([word for text in given for word in ("--set", text)]) in (2, 3)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("width", ["0", "-1", ".nan", ".inf", "-0.5"])
def test_a_network_has_a_width(width):
    with pytest.raises(RedistillError, match="width_mult"):
        load_model(MODEL + width, "random")


def test_factors_and_batches_that_mean_nothing():
    network = load_model(f"{MODEL}0.1", "random")
    with pytest.raises(RedistillError, match="factor 1,000,000 is more than"):
        redistill.transform(network, torch.zeros(1, 3, 32, 32), factors=[1_000_000] * 5)
    with pytest.raises(RedistillError, match="is empty"):
        redistill.transform(network, torch.zeros(0, 3, 32, 32))
