"""What a stranger's folder says is read as data: no module is imported, no pickle opened, no code run."""

import json
import pickle
import shutil

import pytest
import torch
import yaml
from torch import nn

import redistill
from redistill import recipe
from redistill.cli import run
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import load, read, resolved
from redistill.config.settings import ClassifierConfig
from redistill.errors import CheckpointError, TrustError
from redistill.export.__main__ import main as export
from redistill.models import load_model
from redistill.studies.benchmark.__main__ import main as benchmark
from redistill.studies.evaluation.__main__ import main as evaluate
from redistill.studies.gallery.__main__ import main as gallery
from redistill.trainers.checkpoint import Checkpoints
from redistill.trainers.classifier import ClassifierExperiment
from redistill.trainers.classifier import main as classifier
from redistill.trainers.denoiser import main as denoiser

MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def command(tmp_path):
    """What a stranger would run, and the file that tells that it was."""
    mark = tmp_path / "was-here"
    return f"os:system?command='touch {mark}'", mark


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    student = redistill.transform(load_model(MODEL, "random"), IMAGE, "2x", model=MODEL)
    return student.save(tmp_path_factory.mktemp("saved") / "student")


def resealed(folder, **changes):
    """The folder with other fields in its recipe, as whoever writes it can make it: the seal fits."""
    path = folder / recipe.RECIPE
    path.write_text(recipe.sealed({**yaml.safe_load(path.read_text()), **changes}))


@pytest.fixture
def stranger(saved, tmp_path, command):
    """A run's folder whose student and configuration name a command as their model."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder / "student")
    resealed(folder / "student", model=command[0])
    config = resolved(load(DenoiserConfig, "digits/ddpm_smoke.yaml"))
    config["teacher"] |= {"model": command[0]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    return folder


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (benchmark, ["{run}", "--backends", "eager"]),
        (export, ["{run}", "--format", "pt2", "--output", "{run}/out.pt2"]),
        (gallery, ["{run}", "--output", "{run}/out.png"]),
        (evaluate, ["{run}", "-n", "4"]),
        (evaluate, ["{run}/student", "-n", "4"]),
        (denoiser, ["--config", "{run}/own.yaml", "--set", "run.folder={run}", "--resume"]),
        (classifier, ["--config", "{run}/own.yaml", "--set", "run.folder={run}", "--resume"]),
    ],
)
def test_no_command_runs_what_a_folder_names(main, arguments, stranger, command, capsys):
    (stranger / "own.yaml").write_text(yaml.safe_dump({"teacher": {"model": command[0]}}))
    assert run(main, [argument.format(run=stranger) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "--trust" in error
    assert not command[1].exists()


@pytest.mark.parametrize("provider", ["os", "subprocess", "builtins", "transformers", "ultralytics", "torch.hub"])
def test_only_known_providers_are_asked(saved, tmp_path, provider):
    folder = tmp_path / "student"
    shutil.copytree(saved, folder)
    resealed(folder, model=f"{provider}:anything.yaml")
    with pytest.raises(TrustError, match="--trust"):
        redistill.load_student(folder)


def test_trust_or_a_given_teacher_is_leave(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_models.py").write_text(
        f"from redistill.models import load_model\nmade = lambda: load_model({MODEL!r})"
    )
    folder = tmp_path / "student"
    shutil.copytree(saved, folder)
    resealed(folder, model="own_models:made")
    expected = redistill.load_student(saved).eval()(IMAGE)
    assert torch.equal(redistill.load_student(folder, trust=True).eval()(IMAGE), expected)
    assert torch.equal(redistill.load_student(folder, load_model(MODEL, "random")).eval()(IMAGE), expected)


def test_every_model_of_a_configuration_is_asked_about(command, tmp_path):
    evil = command[0]
    for where in ({"teacher": {"model": evil}}, {"student": {"model": evil}}, {"teachers": {"other": {"model": evil}}}):
        with pytest.raises(TrustError, match="--trust"):
            ClassifierExperiment(read(ClassifierConfig, where), tmp_path)
    assert not command[1].exists()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"]
)
def test_a_pickled_checkpoint_is_refused_with_what_to_do(tmp_path, name):
    mark, folder = tmp_path / "was-here", tmp_path / "checkpoints" / "step-000000010"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(pickle.dumps(Evil(mark)))
    (folder / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=r"as pickles.*finish that run with the version that began it"):
        Checkpoints(folder.parent, 2).newest()
    assert not mark.exists()


def test_pickled_weights_are_refused(tmp_path):
    mark, path = tmp_path / "was-here", tmp_path / "weights.pth"
    torch.save({"state_dict": Evil(mark)}, path)
    with pytest.raises(redistill.RedistillError, match="cannot read weights"):
        load_model(MODEL, path)
    assert not mark.exists()


def test_a_checkpoint_holds_nothing_that_runs(tmp_path):
    Checkpoints(tmp_path, 2).save(3, {"task": nn.Linear(2, 2).state_dict(), "plain": [1, None, "text", 0.1]})
    (folder,) = tmp_path.iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".jsonl"}
