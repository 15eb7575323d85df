"""The command on every kind of place, and what it refuses, on digits and a very small UNet."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

import redistill
from redistill.cli import run
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import load, read
from redistill.config.settings import DataConfig
from redistill.models import load_model
from redistill.studies.evaluation.__main__ import build_parser, main
from redistill.studies.evaluation.evaluating import EvaluationConfig
from redistill.studies.evaluation.loading import open_denoiser, open_teacher
from redistill.studies.evaluation.paths import find
from redistill.studies.evaluation.real_images import held_out, to_pixels
from redistill.trainers.denoiser import train

SMALL = [
    "teacher.model=redistill:ddpm_unet?in_channels=1&width=8&multipliers=[1,2]&blocks=1&attention_levels=[]",
    "teacher.recipe.steps=4",
    "student.factors=[2, 1]",
    "recipe.steps=4",
    "recipe.ema=0.995",
    "data.test_limit=8",
    "data.validation=0.01",
    "sampling.images=0",
    "run.brief=true",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a student and its teacher."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    train(load(DenoiserConfig, "digits/ddpm_smoke.yaml", [*SMALL, f"run.folder={folder}"]), folder)
    return folder


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(to_pixels(held_out(DataConfig(image_size=16, channels=1), 8))):
        to_pil_image(pixels).save(folder / f"{index:03}.png")
    return folder


def options(extractor, *more):
    quick = ["--extractor", str(extractor.path), "--steps", "2", "--set", "held_out=4", "--set", "points=3"]
    return [*quick, "--set", "reference_size=640", *more]


def test_a_run_is_scored_beside_its_teacher_and_the_floor(finished, extractor, tmp_path, capsys):
    outputs = {name: tmp_path / name for name in ("scores.json", "errors.png", "images.png")}
    json_file, plot, grid = map(str, outputs.values())
    arguments = options(extractor, "-n", "640", "--json", json_file, "--plot", plot, "--grid", grid, "--seed", "3")
    assert run(main, [str(finished), *arguments]) == 0
    shown = capsys.readouterr().out
    for text in ("FID", "precision", "SSIM", "DDIM-2, seed 3", "EMA 0.995", "640 images", "sha256", "others of train"):
        assert text in shown
    data = json.loads(outputs["scores.json"].read_text())
    student, teacher = data["judged"]["student"], data["judged"]["teacher"]
    assert 0 < data["floor"]["fid"] < min(student["fidelity"]["fid"], teacher["fidelity"]["fid"])
    assert -1 < student["ssim"] < 1
    assert student["mse"] > 0
    assert teacher["ssim"] is None
    assert [point["timestep"] for point in student["errors"]] == [0, 500, 999]
    assert data["extractor_digest"] == extractor.digest
    assert all(Image.open(outputs[name]).width > 300 for name in ("errors.png", "images.png"))


def test_places_of_a_run_are_the_same_network(finished):
    """The delivered student, the last checkpoint's average and, of a run so short, the best weights."""
    run_itself = find(finished)
    config = read(EvaluationConfig, run_itself.settings())
    inputs = torch.randn(2, 1, 16, 16), torch.tensor([3, 700])
    expected = open_denoiser(run_itself, config).network.eval()(*inputs)
    for name, weights in (
        ("student", "last weights"),
        ("checkpoints/step-000000004", "weights of that step"),
        ("best.safetensors", "best validated weights"),
    ):
        place = find(finished / name)
        assert f"{weights}, EMA 0.995" in str(place)
        assert torch.equal(open_denoiser(place, config).network.eval()(*inputs), expected)
    alone = replace(find(finished / "student"), run=None)
    assert torch.equal(open_denoiser(alone, config).network.eval()(*inputs), expected)
    assert open_teacher(alone, config) is None
    assert open_teacher(run_itself, config).network(*inputs).shape == expected.shape


def test_a_folder_of_images(folder_of_images, extractor, tmp_path, capsys):
    many = tmp_path / "many"
    many.mkdir()
    for index in range(80):
        for file in folder_of_images.iterdir():
            shutil.copy(file, many / f"{index}-{file.name}")
    size = ["--data", "digits", "--set", "data.image_size=16", "--set", "data.channels=1"]
    assert run(main, [str(many), *size, *options(extractor, "--json")]) == 0
    judged = json.loads(capsys.readouterr().out)["judged"]["images"]
    assert judged["fidelity"]["images"] == 640
    assert judged["sampling"] is None
    assert judged["fidelity"]["recall"] < 0.5  # eight images over and over


@pytest.mark.parametrize(
    ("subject", "arguments", "message"),
    [
        ("run", ["-n", "639"], "give 640 or more (-n 640)"),
        ("run", ["-n", "640", "--extractor", "missing.pth"], "20480"),
        ("run", ["-n", "20480", "--extractor", "missing.pth"], "digits has 1437 images"),
        ("run", ["-n", "640", "--extractor", "missing.safetensors"], "missing.safetensors"),
        ("run", ["-n", "640", "--data", "digitz"], "did you mean 'digits'"),
        ("run", ["--set", "generation.sampler=euler"], "generation.sampler"),
        ("images", ["--set", "data.image_size=32"], "16x16 pixels and the reference 32x32"),
        ("images", ["--set", "data.image_size=16"], "8 images are too few"),
        ("images", ["--set", "data.image_size=16", "-n", "9"], "holds 8 images, not 9"),
        ("missing", [], "there is no"),
        ("empty", [], "is no run"),
    ],
)
def test_what_misleads_is_refused_in_one_line(
    subject, arguments, message, finished, folder_of_images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"run": finished, "images": folder_of_images}
    assert run(main, [str(places.get(subject, tmp_path / subject)), *arguments, "--json", "scores.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_runs_that_are_unfinished_damaged_or_of_another_kind_are_refused(finished, extractor, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "student")
    arguments = options(extractor, "-n", "640")
    assert run(main, [str(copy), *arguments]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    save_file({"weight": torch.zeros(1)}, copy / "best.safetensors")
    assert run(main, [str(copy / "best.safetensors"), *arguments]) == 2
    assert "does not fit" in capsys.readouterr().err
    checkpoint = copy / "checkpoints" / "step-000000004"
    (checkpoint / "state.safetensors").write_bytes(b"")
    assert run(main, [str(checkpoint), *arguments]) == 2
    assert "damaged" in capsys.readouterr().err
    (copy / "teacher" / "weights.safetensors").unlink()
    shutil.copytree(finished / "student", copy / "student")
    assert run(main, [str(copy), *arguments]) == 2
    assert "teacher's weights are missing" in capsys.readouterr().err
    (copy / "config.yaml").write_text(yaml.safe_dump({"config": {"trainer": "classifier"}}))
    assert run(main, [str(copy), *arguments]) == 2
    assert "only denoisers are evaluated" in capsys.readouterr().err


def test_a_classifier_is_refused_before_features_are_learnt(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("redistill.studies.evaluation.__main__.Evaluator", lambda *given: pytest.fail("has begun"))
    spec = "redistill:cifar_resnet?depth=8&width_mult=0.25"
    student = redistill.transform(load_model(spec, "random"), torch.zeros(1, 3, 32, 32), factors=[2, 1, 1], model=spec)
    assert run(main, [str(student.save(tmp_path / "student"))]) == 2
    said = capsys.readouterr().err
    assert "does not run on images of 3x32x32" in said
    assert "only denoisers are evaluated" in said
    assert said.count("\n") == 1


def test_images_do_not_depend_on_the_batch_and_conditions_are_given(finished):
    from redistill.diffusion import NoiseSchedule
    from redistill.models import DDPMUNet
    from redistill.studies.evaluation.generation import GenerationConfig, TrainedDenoiser, generate

    torch.manual_seed(0)
    network = DDPMUNet(1, 8, (1, 2), (), 1, 0.0, num_classes=3)
    denoiser = TrainedDenoiser(network, NoiseSchedule(), "epsilon", (1, 16, 16), "", classes=3)
    first = generate(denoiser, 5, GenerationConfig(steps=2, batch=5))
    assert (first.shape, first.dtype) == ((5, 1, 16, 16), torch.uint8)
    differences = first.int() - generate(denoiser, 5, GenerationConfig(steps=2, batch=2)).int()
    assert differences.abs().max() <= 1
    assert (first != generate(denoiser, 5, GenerationConfig(steps=2, seed=1))).any()


def test_the_help_teaches_and_places_are_told_apart(finished, folder_of_images):
    assert "weights-inception-2015-12-05-6726825d.pth" in build_parser().format_help()
    assert find(finished).kind == "run"
    assert find(folder_of_images).kind == "images"
