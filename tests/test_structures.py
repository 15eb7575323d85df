import copy
import inspect
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import redistill
from redistill.errors import ModelError
from redistill.tracing.arguments import read_arguments


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 16, 3, 2, 1)
        self.head = nn.Linear(16, 5)

    def features(self, x):
        return self.b(self.a(x).relu()).relu()

    def logits(self, x):
        return self.head(self.features(x).mean((2, 3)))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class ReturnsDataclass(Body):
    def forward(self, x):
        return Output(self.logits(x))


class ReturnsNested(Body):
    def forward(self, x):
        return {"out": [Output(self.logits(x)), (x.mean(), None)], "count": 2}


class ReturnsOrdered(Body):
    def forward(self, x):
        y = self.logits(x)
        return OrderedDict(out=y, aux=None, scale=y * 2)


class TakesList(Body):
    def forward(self, images):
        return self.logits(images[0] + images[1])


class TakesDict(Body):
    def forward(self, batch):
        return self.logits(batch["image"]) * batch["weights"][0]


class TakesKeywords(Body):
    def forward(self, pixel_values=None, mask=None, scale=1.0, *, flip=False):
        x = pixel_values if mask is None else pixel_values * mask
        return {"logits": self.logits(x.flip(3) if flip else x) * scale}


class TakesMore(Body):
    def forward(self, *images, **others):
        return self.logits(sum(images)) + others["bias"]


@dataclass
class Batch:
    image: Tensor
    scale: float = 1.0
    mask: Tensor | None = None
    extra: "Batch | None" = None


class TakesDataclass(Body):
    def forward(self, batch, others=()):
        x = batch.image if batch.mask is None else batch.image * batch.mask
        return self.logits(x) * batch.scale + sum(other.extra.image.mean() for other in others)


def image(seed=0):
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


CALLS = {
    "a dataclass": (ReturnsDataclass, image()),
    "classes in lists in dicts": (ReturnsNested, image()),
    "an ordered dict": (ReturnsOrdered, image()),
    "a list": (TakesList, ([image(), image(1)],)),
    "a dict": (TakesDict, ({"image": image(), "weights": (torch.ones(1),)},)),
    "arguments as a list": (TakesKeywords, [image(), None]),
    "keywords": (TakesKeywords, {"pixel_values": image(), "mask": torch.ones(1, 1, 64, 64)}),
    "constants": (TakesKeywords, {"pixel_values": image(), "scale": 2.0, "flip": True}),
    "a dataclass given": (TakesDataclass, Batch(image(), 2.0, torch.ones(1, 1, 64, 64))),
    "dataclasses in dataclasses": (
        TakesDataclass,
        (Batch(image()), [Batch(image(), extra=Batch(torch.ones(1, 3, 64, 64)))]),
    ),
    "any number of arguments": (TakesMore, {"images": (image(), image(1)), "bias": torch.ones(5)}),
}


def call(module, example):
    if isinstance(example, dict) and "images" in example:
        return module(*example["images"], bias=example["bias"])
    if isinstance(example, dict):
        return module(**example)
    return module(*example) if isinstance(example, (tuple, list)) else module(example)


def same(left, right):
    if isinstance(left, Tensor):
        return torch.allclose(left, right, atol=1e-5)
    if isinstance(left, (tuple, list)):
        return type(left) is type(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return type(left) is type(right) and list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, Output):
        return type(left) is type(right) and same(vars(left), vars(right))
    return left == right


@pytest.mark.parametrize("name", CALLS)
def test_a_student_is_called_as_its_teacher_and_returns_what_it_does(name, tmp_path):
    kind, example = CALLS[name]
    teacher = kind().eval()
    unchanged = redistill.transform(teacher, example, factors=(1, 1), taps="none").eval()
    assert same(call(teacher, example), call(unchanged, example))
    assert list(inspect.signature(unchanged.forward).parameters) == list(inspect.signature(teacher.forward).parameters)
    student = redistill.transform(teacher, example, budget="1.5x").eval()
    loaded = redistill.load_student(student.save(tmp_path / "student"), teacher).eval()
    for other in (loaded, copy.deepcopy(student)):
        assert same(call(student, example), call(other, example))


@pytest.mark.parametrize("name", CALLS)
def test_bytes_are_exact_however_a_network_is_called(name):
    kind, example = CALLS[name]
    teacher = kind().eval()
    student = redistill.transform(teacher, example, budget="1.5x").eval()
    assert redistill.profile(teacher, example, "eager").peak_bytes == redistill.measure(teacher, example)
    assert redistill.profile(student, example, "graph").peak_bytes == redistill.measure(student, example)


@pytest.mark.parametrize("example", [None, (1, 3, 64, 64), {}, []])
def test_an_example_without_a_tensor_is_refused(example):
    with pytest.raises(ModelError, match="holds no tensor"):
        redistill.transform(ReturnsDataclass(), example)


def test_an_example_of_another_form_is_refused_with_the_signature():
    with pytest.raises(ModelError, match=r"does not fit TakesList.forward\(images\)"):
        redistill.transform(TakesList(), (image(), image()))
    with pytest.raises(ModelError, match="does not run"):
        redistill.transform(ReturnsDataclass(), ({"image": image()},))
    with pytest.raises(ModelError, match=r"batch\['image'\] of the example input is a ndarray"):
        redistill.transform(TakesDict(), ({"image": image().numpy(), "weights": image()},))


def test_a_call_that_the_graph_was_not_made_for_is_refused():
    student = redistill.transform(TakesKeywords().eval(), {"pixel_values": image(), "scale": 2.0}, budget="1.5x")
    with pytest.raises(ModelError, match=r"scale is 1\.0; the graph was made for 2\.0"):
        student(image())
    with pytest.raises(ModelError, match="mask was not given"):
        student(image(), torch.ones(1, 1, 64, 64), 2.0)
    with pytest.raises(ModelError, match="pixel_values is a NoneType; the graph was made for a tensor"):
        student(None, scale=2.0)
    with pytest.raises(ModelError, match="does not take this call"):
        student(image(), colour=True)
    assert student(image(), None, 2.0, flip=False)["logits"].shape == (1, 5)


def test_a_dataclass_is_taken_by_its_fields_and_its_class_is_one_that_the_teacher_names():
    student = redistill.transform(TakesDataclass().eval(), Batch(image(), 2.0), budget="1.5x")
    with pytest.raises(ModelError, match=r"batch.* is 3\.0; the graph was made for 2\.0"):
        student(Batch(image(), 3.0))
    with pytest.raises(ModelError, match="batch has another form"):
        student(image())
    stranger = {"object": {"class": "http.client:HTTPConnection", "fields": {"host": "example.org"}}}
    with pytest.raises(ModelError, match="HTTPConnection, which the source of TakesDataclass does not name"):
        read_arguments({"dict": {"batch": stranger}}, (), TakesDataclass())


def test_taps_come_with_the_graphs_own_output():
    teacher = ReturnsDataclass().eval()
    student = redistill.transform(teacher, image(), budget="1.5x").eval()
    output, _ = student.tapped()(image())
    assert torch.equal(output["logits"], student(image()).logits)
    expected, _ = student.teacher_tapped(teacher)(image())
    assert torch.allclose(expected["logits"], teacher(image()).logits, atol=1e-5)
