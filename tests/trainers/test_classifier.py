"""The whole way: teacher, student, methods, loop and command line, on digits and a very small network."""

import functools
import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_networks import small_resnet

import redistill
from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.data.datasets import open_data
from redistill.distillation import MAIN, METHODS, Need
from redistill.distillation.views import view_student, view_teacher
from redistill.errors import ConfigError
from redistill.trainers.acceleration import prefers_channels_last
from redistill.trainers.checkpoint import sole_writer
from redistill.trainers.classifier import ClassifierExperiment, main
from redistill.trainers.loop import Loop
from redistill.trainers.record import Record
from redistill.trainers.state import read_state
from redistill.trainers.students import obtain_student, recalibrate
from redistill.trainers.teachers import obtain_teachers

SMALL = [
    "teacher.model=small_networks:small_resnet",
    "teacher.recipe=null",
    "data.image_size=16",
    "data.train_limit=64",
    "data.test_limit=20",
    "data.validation=0.02",
    "recipe.batch_size=16",
    "recipe.steps=6",
    "run.log_every=1",
    "student.recalibrate=1",
    "student.taps=auto",
    "distillation.first_stage=1",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(small_resnet().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def settings(weights):
    return [*SMALL, f"teacher.weights={weights}"]


opened = functools.cache(open_data)


def parts(settings, folder, *changes):
    config = load(ClassifierConfig, "digits/smoke.yaml", [*settings, *changes])
    experiment = ClassifierExperiment(config, folder, opened(config.data, config.run.seed), trust=True)
    teacher = obtain_teachers(experiment)[MAIN]
    return config, experiment, teacher, obtain_student(experiment, teacher)


def arguments(settings, folder, *changes):
    given = [*settings, f"run.folder={folder}", *changes]
    return ["--trust", *(word for setting in given for word in ("--set", setting))]


OWN_ARCHITECTURE = (
    "student.model=redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1",
    "student.factors=[2, 2, 1, 1, 1]",
)
HARD, EASY = "student.factors=[4, 4, 2, 1]", "student.budget=2x"


@pytest.mark.parametrize(
    ("method", "plan"), [*((name, HARD) for name in METHODS), *((name, EASY) for name in ("red", "reentry", "fitnet"))]
)
def test_every_method_trains_a_real_student_and_leaves_the_teacher_alone(settings, tmp_path, monkeypatch, method, plan):
    monkeypatch.setattr("redistill.trainers.loop.draw_curves", lambda entries: b"")
    slowly = "recipe.optimizer.learning_rate=0.005"  # a teacher of random weights has maps of any size
    config, experiment, teacher, student = parts(settings, tmp_path, plan, slowly, f"distillation.methods={method}")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = experiment.make_task(experiment.make_distiller(student, {MAIN: teacher}))
    loop = Loop(task, config.recipe, config.run, tmp_path)
    outcome = loop.run()
    assert outcome.steps == 6 + (4 if METHODS[method].two_stage else 0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    terms = {name for entry in Record(tmp_path).entries() if entry["kind"] == "train" for name in entry}
    assert any(name.startswith(f"{method}/") for name in terms)
    saved = read_state(loop.checkpoints.all()[-1])["task"]["values"]
    assert {name.split(".")[0] for name in saved} <= {"network", "distillation"}


def test_the_teacher_runs_only_as_deep_as_needed(settings, tmp_path):
    _, _, teacher, student = parts(settings, tmp_path, HARD)
    deep = view_teacher(student, teacher, frozenset({Need.LOGITS}))
    shallow = view_teacher(student, teacher, frozenset({Need.TAPS}))
    targets = [node.target for node in shallow.module.graph.nodes]
    assert deep.module is teacher
    assert "fc" not in targets
    shown = shallow(torch.randn(2, 3, 16, 16))
    assert shown.logits is None
    assert set(shown.taps) == {tap.name for tap in student.taps}


def test_what_the_teacher_shows_may_be_kept_for_backward(settings, tmp_path):
    _, _, teacher, student = parts(settings, tmp_path)
    shown = view_teacher(student, teacher, frozenset(Need))(torch.randn(2, 3, 16, 16))
    values = [shown.logits, shown.reentry, *shown.taps.values(), *shown.stages.values(), *shown.preactivations.values()]
    assert all(not value.is_inference() and not value.requires_grad for value in values)
    assert not teacher.training


def test_a_student_starts_from_the_teacher_or_from_scratch(settings, tmp_path):
    _, _, teacher, warm = parts(settings, tmp_path)
    _, _, _, cold = parts(settings, tmp_path, "student.start=scratch")
    kept = teacher.state_dict()["layer2.conv1.weight"]
    assert torch.equal(warm.state_dict()["layer2.conv1.weight"], kept)
    assert not torch.equal(cold.state_dict()["layer2.conv1.weight"], kept)


def test_a_fitted_student_shows_more_of_what_its_teacher_shows(settings, tmp_path, caplog):
    _, experiment, teacher, plain = parts(settings, tmp_path, HARD)
    with caplog.at_level("INFO", "redistill"):
        *_, fitted = parts(settings, tmp_path, HARD, "student.start=fitted", "student.fit=48")
    assert ", on 48 images" in caplog.text
    (images,) = experiment.inputs(range(64))
    needs = frozenset({Need.REENTRY})
    with torch.no_grad():
        aim = view_teacher(fitted, teacher, needs)(images).reentry
        plains, ours = (view_student(student.eval(), needs)(images).reentry for student in (plain, fitted))
    assert (ours - aim).square().mean() < (plains - aim).square().mean() / 2


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (["student.start=fitted", *OWN_ARCHITECTURE], "leave student.model out"),
        (["student.start=fitted", "student.fit=1"], "must be 2 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings, tmp_path, capsys, changes, remedy):
    assert main(arguments(settings, tmp_path, *changes)) == 2
    error = capsys.readouterr().err
    assert remedy in error
    assert error.count("\n") == 1


def test_a_teacher_may_be_trained_on_other_augmentation(settings, tmp_path):
    def trained(name, *changes):
        recipe = "teacher.recipe={steps: 2, batch_size: 16}"
        path = tmp_path / f"{name}.safetensors"
        _, experiment, teacher, _ = parts(settings, tmp_path / name, f"teacher.weights={path}", recipe, *changes)
        return experiment.config.data.augmentation, teacher.state_dict()["conv1.weight"]

    usual, plain = trained("plain")
    kept, flipped = trained("flipped", "teacher.augmentation={flip: true}")
    _, same = trained("same", "teacher.augmentation={crop: padded, padding: 2}")  # the data's own
    assert kept == usual
    assert not torch.equal(plain, flipped)
    assert torch.equal(plain, same)


def test_a_folder_has_one_writer_at_a_time(settings, tmp_path, capsys):
    with sole_writer(tmp_path):
        assert main(arguments(settings, tmp_path, "recipe.steps=1")) == 2
    assert f"another process is at work in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
    assert main(arguments(settings, tmp_path, "recipe.steps=1")) == 0


def test_without_budget_or_factors_the_student_is_the_architecture_itself(settings, tmp_path):
    _, _, teacher, plain = parts(settings, tmp_path, "student.budget=null", "student.recalibrate=0")
    assert type(plain) is type(teacher)
    assert plain is not teacher
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain.eval()(images), teacher(images))


def test_methods_need_a_student_that_shows_its_taps(settings, tmp_path):
    _, experiment, teacher, plain = parts(settings, tmp_path, "student.budget=null", "distillation.methods=red")
    with pytest.raises(ConfigError, match=r"student\.budget"):
        experiment.make_task(experiment.make_distiller(plain, {MAIN: teacher}))


def terms_of(folder):
    return Record(folder).entries()[0].keys() - {"kind", "step", "loss", "epoch", "learning_rate", "images_per_second"}


def test_each_tap_may_have_its_own_teacher(settings, tmp_path):
    second = "teachers={second: {model: small_networks:small_resnet}}"
    methods = "distillation.methods={red: {taps: [conv1_out]}, red@second: {taps: [layer1_in]}, kd@second: {}}"
    assert main(arguments(settings, tmp_path, HARD, second, methods)) == 0
    assert terms_of(tmp_path) == {"task", "red/conv1_out", "red@second/layer1_in", "kd@second/logits"}


def test_a_teacher_of_another_architecture_is_paired_by_grid(settings, tmp_path):
    methods = "distillation.methods=red+kd+at+fitnet+ofd"
    assert main(arguments(settings, tmp_path, *OWN_ARCHITECTURE, methods, "recipe.steps=2")) == 0
    terms = terms_of(tmp_path)
    assert {"task", "kd/logits"} < terms
    assert {name.split("/")[0] for name in terms} == {"task", "red", "kd", "at", "fitnet", "ofd"}


def test_reentry_needs_the_teachers_own_architecture(settings, tmp_path, capsys):
    assert main(arguments(settings, tmp_path, *OWN_ARCHITECTURE, "distillation.methods=reentry")) == 2
    assert "own architecture" in capsys.readouterr().err


def test_recalibration_measures_plain_averages(settings, tmp_path):
    _, experiment, _, student = parts(settings, tmp_path, "student.budget=null")
    recalibrate(student, experiment, batches=4, batch_size=16)
    (everything,) = experiment.inputs(range(64))
    convolved = student.conv1(everything)
    torch.testing.assert_close(student.bn1.running_mean, convolved.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert student.bn1.momentum == 0.1


def test_the_command_line_trains_teacher_and_student_and_both_can_be_loaded(settings, tmp_path, capsys):
    recipe = "teacher.recipe={epochs: 1, batch_size: 16}"
    assert main(arguments(settings, tmp_path, recipe, f"teacher.weights={tmp_path}/new/teacher.safetensors")) == 0
    shown = capsys.readouterr().out
    assert "test top-1" in shown
    assert "helpers while training" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:5]] == ["teacher", "last", "best"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["helper_parameters"] == {"kd": 0, "reentry": 0}
    assert (tmp_path / "curves.png").stat().st_size > 1000
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["config"]["run"]["seed"] == 0
    assert saved["versions"]["torch"] == torch.__version__
    student = redistill.load_student(tmp_path / "student", teacher=small_resnet()).eval()
    assert student(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert (tmp_path / "new" / "teacher.safetensors").is_file()


def test_a_stopped_command_continues_to_the_same_student(settings, tmp_path, monkeypatch):
    def student_of(folder):
        return redistill.load_student(folder / "student", teacher=small_resnet()).state_dict()

    often = "run.checkpoint_every=2"
    assert main(arguments(settings, tmp_path / "a", often)) == 0
    train_on, calls = Loop._train_on, []

    def failing(self, batch, part):
        calls.append(part)
        if len(calls) == 4:
            raise ConfigError("the power went off")
        train_on(self, batch, part)

    monkeypatch.setattr(Loop, "_train_on", failing)
    assert main(arguments(settings, tmp_path / "b", often)) == 2
    monkeypatch.undo()
    assert main([*arguments(settings, tmp_path / "b", often), "--resume"]) == 0
    straight, continued = student_of(tmp_path / "a"), student_of(tmp_path / "b")
    assert all(torch.equal(value, continued[name]) for name, value in straight.items())
    assert main([*arguments(settings, tmp_path / "b", often, "run.seed=1"), "--resume"]) == 2


@pytest.mark.parametrize(("cpu", "precision", "expected"), [(1, "no", 1), (1, "bf16", 0), (0, "no", 0), (0, "fp16", 1)])
def test_channels_last_is_for_float32_on_a_cpu_and_half_precision_elsewhere(monkeypatch, cpu, precision, expected):
    monkeypatch.setattr("redistill.trainers.acceleration.uses_cpu", lambda: bool(cpu))
    assert prefers_channels_last(precision) == bool(expected)


@pytest.mark.parametrize("quicker", [True, False])
def test_the_memory_layout_is_decided_once_and_kept(settings, tmp_path, monkeypatch, quicker):
    monkeypatch.setattr("redistill.trainers.running.prefers_channels_last", lambda precision: quicker)
    train_on = Loop._train_on

    def failing(self, batch, part):
        if self.progress.step == 3:
            raise ConfigError("the power went off")
        assert self.task.channels_last is quicker
        assert self.task.network.state_dict()["layer2.conv1.weight"].is_contiguous(
            memory_format=torch.channels_last if quicker else torch.contiguous_format
        )
        train_on(self, batch, part)

    monkeypatch.setattr(Loop, "_train_on", failing)
    given = arguments(settings, tmp_path, "run.checkpoint_every=2")
    assert main(given) == 2
    monkeypatch.setattr(Loop, "_train_on", train_on)
    monkeypatch.setattr("redistill.trainers.running.prefers_channels_last", lambda precision: not quicker)
    assert main([*given, "--resume"]) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["config"]["run"]["channels_last"] is quicker


def test_a_saved_student_is_trained_further(settings, tmp_path):
    assert main(arguments(settings, tmp_path / "first")) == 0
    again = [f"student.folder={tmp_path}/first/student", "student.budget=null"]
    assert main(arguments(settings, tmp_path / "second", *again)) == 0
    start = json.loads((tmp_path / "second" / "summary.json").read_text())["start"]
    end = json.loads((tmp_path / "first" / "summary.json").read_text())["last"]["validation"]
    assert start == pytest.approx(end)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["distillation.methods=redd"], "no distillation method 'redd'; did you mean 'red'"),
        (["distillation.methods={kd: {temp: 3}}"], "did you mean 'temperature'"),
        (["distillation.methods=red+kd", "student.taps=none"], "red needs taps and student.taps is none; set"),
        (["data.name=digit"], "did you mean 'digits'"),
        (["teacher.model=small_networks:small_resnet?num_classes=7", "teacher.weights=null"], "num_classes=10"),
        (["teacher.model=small_networks:small_resnet?num_classes=7"], "fc.weight is 10x32"),
        (["teacher.weights=nowhere.pt"], "nowhere.pt"),
        (["teacher.model=small_networks:small_resnet?width=4"], "weight"),
        (["recipe.batch_size=1"], "batch norm needs 2"),
        (["targets.mixing=mixup", "distillation.methods=crd"], "targets.mixing=none"),
        (["student.folder=nowhere"], "nowhere"),
        (["distillation.methods=kd@secnd", "teachers={second: {}}"], "no teacher 'secnd'; did you mean 'second'"),
        (["student.factors=[3]"], "factors"),
        (["student.budget=tiny"], "tiny"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(settings, tmp_path, capsys, changes, words):
    assert main(arguments(settings, tmp_path, *changes)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("methods", "words"), [("redd", "no distillation method 'redd'"), ("kd@secnd", "no teacher 'secnd'")]
)
def test_misspelt_methods_are_refused_before_a_teacher_is_trained(settings, tmp_path, capsys, methods, words):
    changes = [f"distillation.methods={methods}", "teacher.weights=null", "teacher.recipe.epochs=1"]
    assert main(arguments(settings, tmp_path / "run", *changes)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_list_names_experiments_and_methods(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "digits/smoke.yaml" in shown
    assert all(f"  {name} " in shown for name in METHODS)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "accelerate launch -m redistill.trainers.classifier --config" in capsys.readouterr().out


def test_two_views_of_each_image(settings, tmp_path):
    views = ["data.strong={crop: padded, policy: trivial}", "distillation.methods={mlld: {variant: released}, red: {}}"]
    assert main(arguments(settings, tmp_path, HARD, *views)) == 0
    assert {"mlld/instance", "mlld/batch", "mlld/class"} < terms_of(tmp_path)


def test_without_labels_only_what_leads_to_the_reentry_learns(settings, tmp_path):
    config, experiment, teacher, student = parts(
        settings, tmp_path, HARD, "distillation.task=0", "distillation.methods=reentry", "student.recalibrate=0"
    )
    head = student.state_dict()["fc.weight"].clone()
    stem = student.state_dict()["conv1.weight"].clone()
    Loop(
        experiment.make_task(experiment.make_distiller(student, {MAIN: teacher})), config.recipe, config.run, tmp_path
    ).run()
    assert torch.equal(student.state_dict()["fc.weight"], head)
    assert not torch.equal(student.state_dict()["conv1.weight"], stem)
    assert terms_of(tmp_path) == {"reentry/map"}


def test_a_finished_run_may_be_resumed_and_delivers_the_same(settings, tmp_path, capsys):
    assert main(arguments(settings, tmp_path)) == 0
    first = capsys.readouterr().out
    assert main(arguments(settings, tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments(settings, tmp_path), "--resume"]) == 0
    assert capsys.readouterr().out == first


def test_a_place_that_cannot_be_written(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(settings, tmp_path / "file" / "run")) == 2
    assert "run.folder" in capsys.readouterr().err


@pytest.mark.parametrize("switch", ["run.precision=bf16", "run.channels_last=true", "recipe.ema=0.9"])
def test_switches(settings, tmp_path, switch):
    methods = "distillation.methods=red+kd+at+reentry"
    assert main(arguments(settings, tmp_path, HARD, methods, switch, "targets.mixing=either")) == 0
    last = json.loads((tmp_path / "summary.json").read_text())["last"]
    assert last["test"]["loss"] > 0
