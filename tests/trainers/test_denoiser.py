"""The denoiser's way: losses, noise, averages, sample grids, resuming, the command line; on digits and a tiny UNet."""

import functools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import redistill
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import load, packaged
from redistill.data.datasets import open_data
from redistill.distillation import MAIN, Distillation
from redistill.distillation.views import View
from redistill.errors import ConfigError
from redistill.models import load_model
from redistill.trainers.denoiser import DenoiserExperiment, main
from redistill.trainers.loop import Loop
from redistill.trainers.record import Record
from redistill.trainers.state import read_state
from redistill.trainers.students import obtain_student

UNET = "redistill:ddpm_unet?in_channels=1&width=8&multipliers=[1,2]&blocks=1&dropout=0.1"
CLASSES = f"{UNET}&num_classes=10"
SMALL = [
    f"teacher.model={UNET}",
    "teacher.recipe=null",
    "student.factors=[2, 1]",
    "data.image_size=8",
    "data.train_limit=64",
    "data.test_limit=20",
    "data.validation=0.02",
    "recipe.batch_size=16",
    "recipe.steps=6",
    "recipe.schedule.warmup_steps=2",
    "run.log_every=1",
    "run.validate_every=1",
    "sampling.images=4",
    "sampling.steps=3",
]
CONDITIONAL = [f"teacher.model={CLASSES}", "diffusion.conditional=true", "sampling.guidance=1.0"]

opened = functools.cache(open_data)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    torch.manual_seed(0)
    save_file(randomised(load_model(UNET, "random")).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def settings(weights):
    return [*SMALL, f"teacher.weights={weights}"]


def randomised(model):
    """Ordinary weights: the UNet's own start near zero would hide what depends on what."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return model


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr("redistill.trainers.loop.draw_curves", lambda entries: b"")


def taught(folder, *changes):
    config = load(DenoiserConfig, "digits/ddpm_smoke.yaml", [*SMALL, *changes])
    experiment = DenoiserExperiment(config, folder, opened(config.data, config.run.seed))
    torch.manual_seed(0)
    return experiment, randomised(load_model(config.teacher.model, "random"))


def parts(folder, *changes):
    experiment, teacher = taught(folder, *changes)
    return experiment, teacher, obtain_student(experiment, teacher)


def batch_of(experiment, size=16):
    items = experiment.data.train.__getitems__(list(range(size)))
    return {name: torch.as_tensor([item[name] for item in items]) for name in ("labels", "indices")} | {
        "inputs": torch.stack([item["inputs"] for item in items])
    }


def arguments(settings, folder, *changes):
    given = [*settings, f"run.folder={folder}", *changes]
    return [word for setting in given for word in ("--set", setting)]


def losses(folder):
    return [entry["loss"] for entry in Record(folder).entries() if entry["kind"] == "train"]


def test_a_teacher_and_its_student_learn(tmp_path, capsys):
    recipe = "{steps: 40, batch_size: 32, ema: 0.9, optimizer: {learning_rate: 3e-3}, schedule: {warmup_steps: 5}}"
    changes = [f"teacher.recipe={recipe}", f"recipe={recipe}", "run.validate_every=20"]
    assert main(arguments(SMALL, tmp_path, *changes)) == 0
    for folder, share in ((tmp_path / "teacher", 0.5), (tmp_path, 0.8)):
        found = losses(folder)
        assert sum(found[-10:]) < share * sum(found[:10])
        with Image.open(folder / "samples.png") as grid:
            assert grid.size == (2 * (64 + 2) + 2, 2 * (64 + 2) + 2)
        assert list(folder.glob("samples-0000000*.png"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["last"]["test"]["mse"] < summary["start"]["mse"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split("  ")[0] == "weights"
    assert [line.split()[0] for line in shown[2:5]] == ["teacher", "last", "best"]
    teacher = load_model(UNET, tmp_path / "teacher" / "weights.safetensors")
    student = redistill.load_student(tmp_path / "student", teacher).eval()
    assert student(torch.randn(2, 1, 8, 8), torch.tensor([1, 900])).shape == (2, 1, 8, 8)
    terms = Record(tmp_path).entries()[0].keys()
    assert {"task", "mse/logits", "red/head_out"} < terms


def test_a_stopped_run_continues_to_the_bit(settings, tmp_path, monkeypatch):
    changes = ["run.checkpoint_every=2", "recipe.ema=0.9", *CONDITIONAL, "teacher.weights=random"]
    assert main(arguments(settings, tmp_path / "a", *changes)) == 0
    train_on, calls = Loop._train_on, []

    def failing(self, batch, part):
        calls.append(part)
        if len(calls) == 4:
            raise ConfigError("the power went off")
        train_on(self, batch, part)

    monkeypatch.setattr(Loop, "_train_on", failing)
    assert main(arguments(settings, tmp_path / "b", *changes)) == 2
    monkeypatch.undo()
    assert main([*arguments(settings, tmp_path / "b", *changes), "--resume"]) == 0
    straight, continued = (load_file(tmp_path / name / "student" / "weights.safetensors") for name in "ab")
    assert straight.keys() == continued.keys()
    assert all(torch.equal(value, continued[name]) for name, value in straight.items())
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    pictures = [(tmp_path / name / "samples.png").read_bytes() for name in "ab"]
    assert pictures[0] == pictures[1]


def test_teacher_and_student_see_the_same_noisy_images_and_the_teacher_stays_as_it_is(tmp_path):
    experiment, teacher, student = parts(tmp_path)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = experiment.make_task(experiment.make_distiller(student, {MAIN: teacher}))
    seen = []

    def recording(show):
        def shown(*inputs):
            seen.append(inputs)
            return show(*inputs)

        return shown

    task.distiller.student_view = recording(task.distiller.student_view)
    task.distiller.teacher_views = {name: recording(show) for name, show in task.distiller.teacher_views.items()}
    torch.stack(list(task.train()(batch_of(experiment)).values())).sum().backward()
    (noisy, timestep), theirs = seen
    assert noisy is theirs[0]
    assert timestep is theirs[1]
    assert len(timestep.unique()) > 8
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_the_error_is_that_of_what_is_predicted(tmp_path, prediction):
    experiment, _ = taught(tmp_path, f"diffusion.prediction={prediction}")
    schedule = experiment.config.diffusion.make_schedule()
    batch = batch_of(experiment)
    images = batch["inputs"]

    def exact(noisy, timestep):
        image, noise = schedule.scales(timestep, images)
        drawn = (noisy - image * images) / noise
        return {"epsilon": drawn, "sample": images, "v": image * drawn - noise * images}[prediction]

    network = torch.nn.Module()
    network.forward = exact
    task = experiment.make_task(network)
    assert task(batch)["task"].item() < 1e-4
    assert task.measure(batch)["mse"].max().item() < 1e-4


def test_measuring_is_a_function_of_the_image(tmp_path):
    experiment, teacher = taught(tmp_path)
    task, batch = experiment.make_task(teacher).eval(), batch_of(experiment)
    with torch.no_grad():
        together = task.measure(batch)["mse"]
        torch.manual_seed(5)
        alone = task.measure({name: value[3:4] for name, value in batch.items()})["mse"]
    torch.testing.assert_close(alone, together[3:4])


def test_each_image_loses_its_label_by_its_own_draw(tmp_path):
    experiment, teacher = taught(tmp_path, *CONDITIONAL, "diffusion.label_dropout=0.4")
    task, batch, seen = experiment.make_task(teacher), batch_of(experiment, 64), []
    task.distiller.student_view = lambda *inputs: seen.append(inputs[2]) or View(teacher)(*inputs)
    task(batch)
    (labels,) = seen
    dropped = labels == 10
    assert 10 < int(dropped.sum()) < 45
    assert torch.equal(labels[~dropped], batch["labels"][~dropped])


def test_a_conditional_student_samples_with_guidance(settings, tmp_path):
    assert main(arguments(settings, tmp_path, *CONDITIONAL, "teacher.weights=random")) == 0
    student = redistill.load_student(tmp_path / "student", load_model(CLASSES, "random")).eval()
    noisy, timestep = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.tensor([500, 500])
    first, second = student(noisy, timestep, torch.tensor([3, 10]))
    assert not torch.equal(first, second)


def test_averages_are_delivered(settings, tmp_path):
    assert load(DenoiserConfig, "cifar10/ddpm.yaml").recipe.ema == 0.9999
    experiment, teacher, student = parts(tmp_path, "recipe.ema=0.5")
    task, config = experiment.make_task(experiment.make_distiller(student, {MAIN: teacher})), experiment.config
    loop = Loop(task, config.recipe, config.run, tmp_path)
    loop.run()
    assert all(torch.equal(value, loop.average.values[name]) for name, value in student.state_dict().items())
    trained = read_state(loop.checkpoints.all()[-1])["task"]["values"]
    assert any(not torch.equal(value, trained[f"network.{name}"]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    "switches",
    [
        ["diffusion.prediction=v", "diffusion.schedule=cosine", "sampling.sampler=ddpm"],
        ["run.precision=bf16", "run.channels_last=true", "recipe.ema=null"],
        ["distillation.methods=none", "distillation.task=1", "student.budget=null", "student.factors=null"],
        ["distillation.methods=red+mse+at+fitnet", "sampling.images=0", "recipe.accumulation=2"],
        ["student.taps=PLACES", "distillation.methods=red"],
    ],
)
def test_switches(settings, tmp_path, switches):
    places = tmp_path / "taps.yaml"
    places.write_text("- {student: head out, teacher: downblocks.1.conv out}\n")
    chosen = [switch.replace("PLACES", str(places)) for switch in switches]
    assert main(arguments(settings, tmp_path / "run", *chosen)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["last"]["test"]["mse"] > 0
    assert (tmp_path / "run" / "samples.png").exists() == ("sampling.images=0" not in switches)


def test_a_teacher_of_another_width_is_paired_by_grid(settings, tmp_path):
    wide = UNET.replace("width=8", "width=16")
    changes = [f"teacher.model={wide}", "teacher.weights=random", f"student.model={UNET}"]
    assert main(arguments(settings, tmp_path, *changes)) == 0
    assert {"red/head_out", "mse/logits"} < Record(tmp_path).entries()[0].keys()


def test_a_teacher_of_diffusers(settings, tmp_path):
    pytest.importorskip("diffusers")
    spec = (
        "diffusers:UNet2DModel?sample_size=8&in_channels=1&out_channels=1&block_out_channels=[8,16]"
        "&layers_per_block=1&norm_num_groups=4&down_block_types=[DownBlock2D,AttnDownBlock2D]"
        "&up_block_types=[AttnUpBlock2D,UpBlock2D]"
    )
    assert main(arguments(settings, tmp_path, f"teacher.model={spec}", "teacher.weights=random")) == 0
    student = redistill.load_student(tmp_path / "student", load_model(spec, "random")).eval()
    assert student(torch.randn(2, 1, 8, 8), torch.tensor([1, 900])).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["distillation.methods=kd"], "kd compares class probabilities and a denoiser predicts noise; use mse"),
        (["distillation.methods=reentry"], "use red"),
        (["diffusion.timestep=100"], "did you mean 'timesteps'"),
        (["diffusion.prediction=eps"], "'eps' is not one of epsilon, sample, v"),
        (["diffusion.label_dropout=1"], "label_dropout"),
        (["diffusion.first_beta=0.5"], "must rise between 0 and 1"),
        (["data.mean=[0.3]"], "leave data.mean and data.std at [0.5]"),
        (["data.channels=3"], "write the spec for 3 channels"),
        (["data.image_size=7"], "data.image_size to a side that its levels can halve"),
        (["student.factors=[16, 16]"], "choose pooling factors that divide"),
        ([f"teacher.model={UNET.replace('width=8', 'width=12')}"], "does not fit redistill:ddpm_unet"),
        (["diffusion.conditional=true"], "num_classes=10"),
        (["teacher.model=torchvision:resnet18", "teacher.weights=random"], "take images and timesteps"),
        (["sampling.steps=0"], "steps=0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(settings, tmp_path, capsys, changes, words):
    assert main(arguments(settings, tmp_path, *changes)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", packaged("denoiser"))
def test_packaged_experiments_can_be_read(name):
    config = load(DenoiserConfig, name)
    assert config.recipe.optimizer.name == "adamw"
    assert config.recipe.optimizer.weight_decay == 0
    assert config.recipe.ema is not None
    Distillation(config.distillation.methods)


def test_a_section_keeps_the_defaults_of_its_trainer(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("trainer: denoiser\nrecipe: {optimizer: {learning_rate: 1e-3}}\nteacher: {recipe: {steps: 5}}\n")
    config = load(DenoiserConfig, str(path))
    for recipe in (config.recipe, config.teacher.recipe):
        assert (recipe.optimizer.name, recipe.optimizer.weight_decay, recipe.ema) == ("adamw", 0.0, 0.9999)
        assert recipe.schedule.warmup_steps == 5000
    assert (config.recipe.optimizer.learning_rate, config.teacher.recipe.steps) == (1e-3, 5)
    assert config.data.name == "cifar10"


def test_help_and_list_teach(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "accelerate launch -m redistill.trainers.denoiser --config cifar10/ddpm.yaml" in capsys.readouterr().out
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "digits/ddpm_smoke.yaml" in shown
    assert "digits/smoke.yaml" not in shown
    assert "  mse " in shown
    assert "  kd " not in shown
