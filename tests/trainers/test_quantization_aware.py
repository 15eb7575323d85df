"""Training rounded: the network, its freezing and conversion, and the int8 stage of the classifier."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("executorch")
pytest.importorskip("torchao")

from small_networks import small_resnet

import redistill
from redistill.errors import InterruptedRunError
from redistill.quantization import FakeQuantized, QuantizationError
from redistill.quantization.files import load_program, save_program
from redistill.trainers import int8
from redistill.trainers.classifier import main
from redistill.trainers.loop import Loop
from redistill.trainers.record import Record

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def images(count, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def float_student():
    torch.manual_seed(0)
    student = redistill.transform(small_resnet(), EXAMPLE, factors=(2, 2, 1, 1), taps="auto").train()
    with torch.no_grad():
        for _ in range(20):  # batch norms fit the images, as a trained network's do
            student(images(32))
    return student.eval()


@pytest.fixture
def network(float_student):
    return FakeQuantized(float_student.tapped(), images(32).split(16), EXAMPLE, freeze_after=3)


def ranges(network):
    scales = {name: value.clone() for name, value in network.state_dict().items() if name.endswith("scale")}
    return torch.cat([scale for scale in scales.values() if scale.numel() == 1])


def test_it_shows_taps_and_what_it_learns_is_what_is_deployed(float_student, network):
    inputs, labels = images(32, 2), torch.arange(32) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        output, maps = network.tapped(inputs)
        loss = nn.functional.cross_entropy(output, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert maps.keys() == {tap.name for tap in float_student.taps}
    program = network.to(memory_format=torch.channels_last).convert()
    with torch.no_grad():
        assert torch.equal(program(inputs), network.eval()(inputs))
    assert all(value.is_contiguous() for value in program.buffers())  # XNNPACK takes no other constants
    weights = network.weights()
    assert weights.keys() == {name for name in float_student.state_dict() if not name.endswith("tracked")}
    assert not torch.equal(weights["fc.weight"], float_student.state_dict()["fc.weight"])


def test_ranges_move_while_training_until_they_are_frozen(network):
    def moved(mode, seed):
        network.train(mode)
        before = ranges(network)
        network(10 * images(8, seed))
        return not torch.equal(ranges(network), before)

    assert [moved(False, 3), moved(True, 4), moved(True, 5), moved(False, 6), moved(True, 7)] == [0, 1, 1, 0, 0]
    assert not moved(True, 8)


def test_a_saved_state_goes_on_where_it_was(float_student, network):
    network(10 * images(8, 3))
    other = FakeQuantized(float_student.tapped(), images(16, 9).split(16), EXAMPLE, freeze_after=3)
    other.load_state_dict(network.state_dict())
    for _ in range(3):
        assert torch.equal(network(images(8, 4)), other(images(8, 4)))
    assert torch.equal(ranges(network), ranges(other))


def test_channels_whose_weights_have_one_sign_are_symmetric_too(float_student):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    nn.init.uniform_(model[0].weight, 0.1, 1)
    program = FakeQuantized(model, [EXAMPLE], EXAMPLE).convert()
    points = [value for name, value in program.named_buffers() if "zero_point" in name]
    assert len(points) == 1
    assert not points[0].any()


def test_a_program_is_one_file_with_facts(network, tmp_path):
    program = network.convert()
    path = save_program(program, EXAMPLE, tmp_path / "student.pt2", {"mean": [0.5]})
    loaded, facts = load_program(path)
    assert facts == {"mean": [0.5]}
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(5)), program(images(5)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(QuantizationError, match=r"student\.pt2 cannot be read"):
        load_program(path)


SMALL = [
    "teacher.model=small_networks:small_resnet",
    "teacher.recipe=null",
    "student.factors=[2, 2, 1, 1]",
    "data.image_size=16",
    "data.train_limit=256",
    "data.test_limit=100",
    "recipe.batch_size=32",
    "recipe.epochs=6",
    "student.recalibrate=1",
    "student.taps=auto",
    "distillation.methods=red+kd",
    "run.log_every=2",
    "quantization.epochs=2",
    "quantization.images=64",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(small_resnet().state_dict(), path)
    return [*SMALL, f"teacher.weights={path}"]


def arguments(settings, folder, *changes):
    given = [*settings, f"run.folder={folder}", *changes]
    return ["--trust", "--config", "digits/int8.yaml", *(word for setting in given for word in ("--set", setting))]


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(arguments(settings, folder)) == 0
    return folder


def test_the_int8_student_is_nearly_as_good_as_the_float_one(finished):
    summary = json.loads((finished / "summary.json").read_text())
    top1 = {name: summary["int8"][name]["test"]["top1"] for name in ("post_training", "aware")}
    assert summary["last"]["test"]["top1"] > 40
    assert min(top1.values()) > summary["last"]["test"]["top1"] - 4
    memory = summary["int8"]["memory"]
    assert memory["student"]["arena"]["fp32"] == 4 * memory["student"]["arena"]["int8"]
    assert memory["teacher"]["deploy"]["int8"] > memory["student"]["deploy"]["int8"]


def test_it_is_taught_by_the_same_methods(finished):
    terms = Record(finished / "int8").entries()[0].keys()
    assert {"task", "kd/logits", "red/conv1_out"} <= terms


def test_what_is_delivered_is_what_was_measured(finished):
    program, facts = load_program(finished / "student_int8.pt2")
    summary = json.loads((finished / "summary.json").read_text())
    assert facts["test"] == summary["int8"]["aware"]["test"]
    assert facts["student"]["model"] == "small_networks:small_resnet"
    assert program(images(3)).shape == (3, 10)
    plain, trained = (
        redistill.load_student(folder / "student", teacher=small_resnet()).state_dict()
        for folder in (finished, finished / "int8")
    )
    assert torch.equal(plain["bn1.running_mean"], trained["bn1.running_mean"])
    assert not torch.equal(plain["fc.weight"], trained["fc.weight"])


def test_a_student_trained_before_is_taken_as_it_is_and_a_stopped_stage_continues(
    finished, settings, tmp_path, monkeypatch, capsys
):
    changes = [f"student.folder={finished}/student", "recipe.epochs=0"]
    monkeypatch.setattr(Loop, "_must_stop", lambda *given: True)
    assert main(arguments(settings, tmp_path, *changes)) == InterruptedRunError.exit_code
    monkeypatch.undo()
    assert "stopped at step 1;" in capsys.readouterr().err
    assert main([*arguments(settings, tmp_path, *changes), "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "int8, post-training" in shown
    assert "int8, arena" in shown
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (finished, tmp_path)]
    assert summaries[0]["last"]["test"] == pytest.approx(summaries[1]["last"]["test"])
    assert summaries[0]["int8"] == summaries[1]["int8"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["quantization.mode=int4"], "quantization.mode: 'int4' is not one of none, int8"),
        (["quantization.freeze=1"], "quantization.freeze=1.0: must be 0 or more and below 1"),
        (["run.precision=bf16"], "--set run.precision=no"),
        (["quantization.float_modules=[layer1.shortcut1]"], "did you mean 'layer1.shortcut'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(settings, tmp_path, capsys, changes, words):
    assert main(arguments(settings, tmp_path, *changes)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_missing_package_is_said_before_the_work(settings, tmp_path, capsys, monkeypatch):
    def missing():
        raise QuantizationError("int8 needs executorch and torchao; pip install 'redistill[export]'")

    monkeypatch.setattr(int8, "require_backend", missing)
    assert main(arguments(settings, tmp_path)) == 2
    assert "redistill[export]" in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
