"""The front door to distillation: a student, its teachers and methods as one module, in a loop of one's own."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import redistill
from redistill.distillation import DistillationMethod, Need, TrainingSet
from redistill.errors import ConfigError, TapError

IMAGES, LABELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


class Net(nn.Module):
    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.end = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.dropout(self.end(self.middle(self.stem(x))).mean((2, 3))))


class HalfTheLogits(DistillationMethod):
    needs = frozenset({Need.LOGITS})
    weight = 3.0

    def __init__(self, *, part=0.5):
        super().__init__()
        self.part = part
        self.scale = nn.Parameter(torch.ones(()))

    def losses(self, student, teacher, targets):
        return {"first": self.part * (self.scale * student.logits[:, 0] - teacher.logits[:, 0]).square().mean()}


NOT_A_METHOD = nn.Linear(2, 2)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def student(teacher):
    return redistill.transform(teacher, IMAGES[:1], factors=[2, 1, 1], taps="auto")


def step(distil, **more):
    logits, losses = distil(IMAGES, labels=LABELS, **more)
    (F.cross_entropy(logits, LABELS) + sum(losses.values())).backward()
    return logits, losses


@pytest.mark.parametrize("methods", ["red+kd", {"kd": {"temperature": 2}, "fitnet": None}, ["at", HalfTheLogits()]])
def test_a_loop_of_ones_own_trains_student_and_helpers_alone(teacher, student, methods):
    before = copy.deepcopy(teacher.state_dict())
    distil = redistill.Distiller(student, teacher.train(), methods, example=IMAGES).train()
    optimizer = torch.optim.SGD(distil.parameters(), lr=0.1)
    first = step(distil)[1]
    optimizer.step()
    optimizer.zero_grad()
    second = step(distil)[1]
    assert first.keys() == second.keys()
    assert sum(second.values()) != sum(first.values())
    assert all(parameter.grad is not None for parameter in distil.parameters())
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_what_is_registered(teacher, student):
    distil = redistill.Distiller(student, teacher, "kd+fitnet", example=IMAGES)
    own, helpers = {*student.parameters()}, {*distil.distillation.parameters()}
    assert helpers
    assert {*distil.parameters()} == own | helpers
    assert {name.split(".")[0] for name in distil.state_dict()} == {"student", "distillation"}
    fresh = redistill.Distiller(copy.deepcopy(student), teacher, "kd+fitnet", example=IMAGES)
    fresh.load_state_dict(distil.state_dict())
    assert torch.equal(fresh.eval()(IMAGES)[1]["fitnet/middle.0"], distil.eval()(IMAGES)[1]["fitnet/middle.0"])


def test_the_students_mode_is_left_and_its_output_is_its_own(teacher, student):
    statistics = copy.deepcopy(student.state_dict())
    distil = redistill.Distiller(student.train(), teacher, "red+kd")
    assert student.training
    assert all(torch.equal(value, statistics[name]) for name, value in student.state_dict().items())
    logits, losses = distil.eval()(IMAGES)
    assert torch.equal(logits, student.eval()(IMAGES))
    assert set(losses) == {"kd/logits", *(f"red/{tap.name}" for tap in student.taps)}


def test_teachers_move_with_the_student(teacher, student):
    distil = redistill.Distiller(student, teacher, "red+kd", example=IMAGES).double()
    logits, losses = distil(IMAGES.double())
    assert logits.dtype == torch.float64
    assert next(teacher.parameters()).dtype == torch.float64
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_copy_is_independent(teacher, student):
    distil = redistill.Distiller(student, teacher, "red+kd", example=IMAGES).eval()
    twin, before = copy.deepcopy(distil), distil(IMAGES)[0]
    with torch.no_grad():
        twin.student.head.weight.zero_()
    assert torch.equal(distil(IMAGES)[0], before)
    assert not torch.equal(twin(IMAGES)[0], before)


def test_any_module_learns_from_anothers_outputs(teacher):
    student = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    distil = redistill.Distiller(student, teacher, {"kd": {"weight": 0.5}, "dkd": {}}, example=IMAGES)
    _, losses = step(distil)
    assert set(losses) == {"kd/logits", "dkd/target", "dkd/others"} or {"kd/logits"} < set(losses)
    with pytest.raises(ConfigError, match=r"taps need a student made by redistill\.transform, not a Sequential"):
        redistill.Distiller(student, teacher, "red", example=IMAGES)
    with pytest.raises(ConfigError, match="give example=images"):
        redistill.Distiller(student, teacher, "kd")


def test_several_teachers_by_name(teacher, student):
    torch.manual_seed(1)
    teachers = {"teacher": teacher, "wide": Net(width=12)}
    mine = HalfTheLogits()
    asked = {"red": {}, "kd@wide": {"temperature": 2.0}, mine: {"teacher": "wide", "weight": 1.0}}
    distil = redistill.Distiller(student, teachers, asked, example=IMAGES)
    losses = distil.eval()(IMAGES)[1]
    assert {"kd@wide/logits", "halfthelogits@wide/first"} < losses.keys()
    expected = 0.5 * (student(IMAGES)[:, 0] - teachers["wide"](IMAGES)[:, 0]).square().mean()
    assert losses["halfthelogits@wide/first"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ConfigError, match="no teacher 'wid'; did you mean 'wide'"):
        redistill.Distiller(student, teachers, "kd@wid")


@pytest.mark.parametrize(
    ("asked", "weight", "part"),
    [
        (HalfTheLogits(part=2.0), 3.0, 2.0),
        ([HalfTheLogits], 3.0, 0.5),
        ({HalfTheLogits: {"part": 2.0, "weight": 5.0}}, 5.0, 2.0),
        (f"{__name__}:HalfTheLogits", 3.0, 0.5),
        ({f"{__name__}:HalfTheLogits": {"part": 4.0}}, 3.0, 4.0),
    ],
)
def test_ones_own_method_in_every_form(teacher, student, asked, weight, part):
    distil = redistill.Distiller(student, teacher, asked, example=IMAGES).eval()
    expected = weight * part * (student(IMAGES)[:, 0] - teacher(IMAGES)[:, 0]).square().mean()
    assert distil(IMAGES)[1]["halfthelogits/first"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("redd", "no distillation method 'redd'; did you mean 'red'"),
        ("my.losses.Mine", "your own is written package.module:Name"),
        ("no_such_package.losses:Mine", "cannot import no_such_package.losses"),
        (f"{__name__}:HalfTheLogit", "has no 'HalfTheLogit'; did you mean 'HalfTheLogits'"),
        (f"{__name__}:NOT_A_METHOD", "derive it from redistill.distillation.DistillationMethod"),
        ([nn.Linear], "Linear is no distillation method"),
        ({HalfTheLogits: {"par": 1}}, "halfthelogits has no option 'par'; did you mean 'part'"),
        ({HalfTheLogits(): {"part": 1}}, "has no option 'part'"),
        ([HalfTheLogits, HalfTheLogits()], "asked for twice"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(teacher, student, asked, words):
    with pytest.raises(ConfigError, match=words) as caught:
        redistill.Distiller(student, teacher, asked)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_shares_weights_is_refused(teacher, student):
    with pytest.raises(ConfigError, match=r"copy\.deepcopy"):
        redistill.Distiller(teacher, teacher, "kd", example=IMAGES)
    with pytest.raises(ConfigError, match=r"copy\.deepcopy"):
        redistill.Distiller(student, student, "kd")


def test_the_training_set_is_told_to_methods_that_ask(teacher, student):
    with pytest.raises(TapError, match="has no labels"):
        redistill.Distiller(student, teacher, "crd", example=IMAGES)
    facts = TrainingSet(samples=6, classes=4, labels=LABELS)
    distil = redistill.Distiller(student, teacher, "crd", example=IMAGES, training_set=facts)
    assert all(torch.isfinite(loss) for loss in step(distil, indices=torch.arange(6))[1].values())


def test_the_first_stage_of_two_stage_methods_and_warmup(teacher, student):
    distil = redistill.Distiller(student, teacher, {"ab": {}, "kd": {"warmup": 4}}, example=IMAGES)
    assert {name.split("/")[0] for name in distil(IMAGES, first_stage=True)[1]} == {"ab"}
    distil.eval()
    early, late = (distil(IMAGES, epoch=epoch)[1]["kd/logits"].item() for epoch in (1, 8))
    assert early == pytest.approx(late / 4)


def test_blended_labels_come_as_weights_of_classes(teacher, student):
    seen = []

    class Watching(HalfTheLogits):
        def losses(self, student, teacher, targets):
            seen.append(targets)
            return super().losses(student, teacher, targets)

    distil = redistill.Distiller(student, teacher, [Watching()])
    distil(IMAGES, labels=LABELS)
    distil(IMAGES, labels=F.one_hot(LABELS, 4).float())
    assert torch.equal(seen[0].labels, LABELS)
    assert seen[1].labels is None
    assert seen[1].soft.shape == (6, 4)


def test_methods_are_listed_with_papers_and_options():
    listed = redistill.methods()
    assert listed["kd"].paper.endswith("arXiv 1503.02531")
    assert [str(option) for option in listed["kd"].options] == ["temperature: float = 4.0"]
    assert listed["ab"].two_stage
    assert len(repr(listed).splitlines()) == len(listed) + 2
    assert all(entry.about and entry.reads for entry in listed.values())
    own = {name for name, entry in listed.items() if not entry.paper}
    assert own == {"maps", "mse", "reentry", "scaffold"}


def test_a_student_without_taps_is_told_what_else_there_is(teacher):
    student = redistill.transform(teacher, IMAGES[:1], factors=[2, 1, 1])
    with pytest.raises(TapError, match=r'no taps; make it with taps="auto".*or use kd or reentry'):
        redistill.Distiller(student, teacher, "red")


def test_gradients_of_several_processes_are_averaged_and_mixed_precision_is_kept_from_the_losses(
    teacher, student, tmp_path
):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        distil = DistributedDataParallel(redistill.Distiller(student, teacher, "red+kd+fitnet", example=IMAGES))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, losses = step(distil)
    finally:
        dist.destroy_process_group()
    assert logits.dtype == torch.bfloat16
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in distil.parameters())
