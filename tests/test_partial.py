"""Partial students: where only the data decide how much comes out, the part before is planned and put in its place."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import redistill
from redistill.errors import ConfigError, StudentError, TraceError
from redistill.internal.text import format_bytes
from redistill.partial import PartialStudent
from redistill.student import Student

PICTURE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """A body, a head, and an ending that may yield as much as it finds."""

    def __init__(self, ending=torch.nonzero):
        super().__init__()
        self.plan = "of the teacher"
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))
        self.head = nn.Conv2d(32, 5, 1)
        self.ending = ending

    def forward(self, images):
        return self.ending(self.head(self.body(images)))


class Bare(Detector):
    """The same without a part that holds its convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = self.body[0], self.body[2]
        del self.body

    def forward(self, images):
        return self.second(self.first(images).relu()).nonzero()


ENDINGS = {
    "nonzero": lambda y: y.nonzero(),
    "an index by a mask": lambda y: y[y > 0],
    "masked_select": lambda y: y.masked_select(y > 0),
    "unique": lambda y: y.unique(),
    "nms": lambda y: torchvision.ops.nms(y[0, :4].flatten(1).T, y[0, 4].flatten(), 0.5),
    "bincount": lambda y: y.relu().flatten().long().bincount(),
    "int() reads": lambda y: y[:, :, : int(y.argmax())],
    "getitem reads": lambda y: y[..., : y.argmax()],
}


@pytest.mark.parametrize("name", list(ENDINGS))
def test_the_part_before_what_depends_on_the_data_is_planned(name):
    teacher = Detector(ENDINGS[name]).eval()
    student = redistill.transform(teacher, PICTURE, budget="1.5x", taps="none")
    assert isinstance(student, Detector)
    assert isinstance(student, PartialStudent)
    assert student.record.plan.factors == (2,)
    assert student.plan == "of the teacher"
    note = student.provenance.notes[0]
    assert note.startswith("planned is body alone, called with 1x3x64x64")
    assert name in note
    whole = [format_bytes(redistill.measure(each, PICTURE)) for each in (teacher, student)]
    part = [format_bytes(redistill.measure(each.body, PICTURE)) for each in (teacher, student)]
    assert student.provenance.notes[1].endswith(f": body {' -> '.join(part)}, the whole {' -> '.join(whole)}")
    assert part[1] == format_bytes(redistill.profile(student.body, PICTURE, "graph").peak_bytes)
    torch.manual_seed(0)
    assert torch.equal(student(PICTURE), teacher.ending(student.head(student.part(PICTURE))))


def test_the_teacher_is_not_touched_and_the_student_keeps_its_keys():
    teacher = Detector()
    before = copy.deepcopy(teacher.state_dict())
    student = redistill.transform(teacher, [PICTURE], budget="1.5x", taps="none")
    assert type(teacher) is Detector
    assert type(teacher.body) is nn.Sequential
    assert student.training
    assert student.state_dict().keys() == before.keys()
    with torch.no_grad():
        student.head.weight.zero_()
        student.body.get_parameter("0.weight").zero_()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    twin = copy.deepcopy(student)
    assert twin.record.plan == student.record.plan
    assert twin.part is not student.part


def test_it_is_saved_and_loaded_as_a_whole(tmp_path):
    student = redistill.transform(Detector().eval(), PICTURE, budget="1.5x")
    with torch.no_grad():
        student.head.weight.mul_(2)
    loaded = redistill.load_student(student.save(tmp_path / "student"), Detector().eval())
    assert torch.equal(loaded(PICTURE), student(PICTURE))
    assert loaded.record.plan.factors == (2,)
    assert "Sequential (body)" in loaded.report()
    assert loaded.comparison().title == student.comparison().title
    with pytest.raises(StudentError, match="ReLU has no body"):
        redistill.load_student(tmp_path / "student", nn.ReLU())


def test_its_part_is_distilled_from_the_teachers():
    teacher = Detector().eval()
    student = redistill.transform(teacher, PICTURE, factors=[2], taps="none")
    distil = redistill.Distiller(student.part, teacher.body, "mse")
    _, losses = distil(PICTURE)
    sum(losses.values()).backward()
    assert student.body.get_parameter("0.weight").grad.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"compare its part: Distiller\(student.part, teacher.body\)"):
        redistill.Distiller(student, teacher, "mse")


def test_without_a_part_to_plan_the_refusal_names_operation_line_and_remedy():
    with pytest.raises(TraceError) as caught:
        redistill.transform(Bare(), PICTURE, budget="2x")
    message = str(caught.value)
    assert "how much nonzero yields depends on the data" in message
    assert f"{__file__}:" in message
    assert "make that part a module of its own" in message
    assert "\n" not in message


def small_faster_rcnn():
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)
    )  # fmt: skip
    backbone.out_channels = 32
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return FasterRCNN(backbone, num_classes=3, min_size=64, max_size=64, rpn_anchor_generator=anchors)


def test_a_detector_stays_a_detector():
    torch.manual_seed(0)
    teacher, image = small_faster_rcnn().eval(), torch.rand(3, 80, 80)
    student = redistill.transform(teacher, [[image]], budget="1.5x", taps="none")
    assert isinstance(student, FasterRCNN)
    assert isinstance(student.backbone, Student)
    maps = torch.rand(1, 3, 64, 64)
    assert student.backbone(maps).shape == teacher.backbone(maps).shape == (1, 32, 16, 16)
    assert set(student([image, image])[1]) == {"boxes", "scores", "labels"}
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    sum(student.train()([image, image], [target, target]).values()).backward()
    assert all(parameter.grad is not None for parameter in student.backbone.parameters())
