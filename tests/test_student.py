"""A student has a module's habits."""

import copy
import pickle
from dataclasses import asdict

import pytest
import torch
import yaml
from torch import nn

import redistill
from redistill.compiler.request import Request
from redistill.errors import ModelError, StudentError
from redistill.memory.conventions import CONVENTIONS, Convention
from redistill.memory.meter import measure
from redistill.recipe import RECIPE
from tests.trainers.small_networks import small_resnet

X = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
PINNED = Convention("pinned", "as deploy, the caller keeps the input", overwrites=True, pins_input=True)


@pytest.fixture(scope="module")
def student():
    return redistill.transform(small_resnet(), X, factors=(2, 2, 1, 1), taps="auto").eval()


def test_what_it_knows_reads_in_one_line(student):
    assert str(student.plan).startswith("2, 2, 1, 1: ")
    assert str(student.plan).endswith(
        f"({student.plan.convention}), {student.plan.macs_kept:.0%}"[:-1] + " % of the MACs"
    )
    assert "\n" not in repr(student.profile)
    assert len(repr(student.profile)) < 120
    tap = student.taps[0]
    assert str(tap) == f"{tap.student} <- {tap.teacher} {tap.grid[0]}x{tap.grid[1]}x{tap.channels}"


def test_it_is_loaded_by_its_own_class(student, tmp_path):
    student.save(tmp_path / "s")
    again = redistill.Student.load(tmp_path / "s", small_resnet()).eval()
    assert torch.equal(again(X), student(X))
    assert again.provenance.request == student.provenance.request


@pytest.mark.parametrize("write", [pickle.dumps, lambda s: torch.save(s, "unwritten")])
def test_it_is_not_pickled(student, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudentError, match=r"student\.save\(folder\)"):
        write(student)


def test_it_is_copied(student):
    twin = copy.deepcopy(student)
    assert torch.equal(twin(X), student(X))
    assert twin.plan == student.plan


class Awkward(nn.Module):
    """Submodules called as a student's own attributes are."""

    NAMES = ("plan", "save", "report", "record", "output", "profile", "tapped")

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            setattr(self, name, nn.Conv2d(3, 3, 3, stride=2 if name in ("plan", "save") else 1, padding=1))

    def forward(self, x):
        for name in self.NAMES:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


def test_a_teacher_may_call_its_submodules_anything(tmp_path):
    teacher = Awkward().eval()
    student = redistill.transform(teacher, X, factors=(1, 1)).eval()
    torch.testing.assert_close(student(X), teacher(X))
    twin = copy.deepcopy(student)
    assert isinstance(twin.save, nn.Conv2d)
    torch.testing.assert_close(twin(X), teacher(X))
    redistill.Student.save(student, tmp_path / "s")
    again = redistill.load_student(tmp_path / "s", Awkward())
    torch.testing.assert_close(again.eval()(X), teacher(X))
    assert "2, 1" not in redistill.Student.report(student)


def test_an_own_convention_is_a_value(tmp_path):
    teacher = small_resnet()
    assert redistill.profile(teacher, X, PINNED).peak_bytes >= redistill.profile(teacher, X).peak_bytes
    student = redistill.transform(teacher, X, "2x", PINNED, taps="none")
    assert student.profile.convention is PINNED
    assert "pinned convention: as deploy, the caller keeps the input" in " ".join(student.report().split())
    student.save(tmp_path / "s")
    assert redistill.load_student(tmp_path / "s", teacher).provenance.request.convention == PINNED


def test_the_graph_convention_from_its_parts_is_what_a_meter_sees():
    teacher = small_resnet().eval()
    flags = {**asdict(CONVENTIONS["graph"]), "name": "mine"}
    student = redistill.transform(teacher, X, "2x", Convention(**flags)).eval()
    assert student.profile.peak_bytes == measure(student, X)


def test_a_convention_that_contradicts_itself_is_refused():
    with pytest.raises(ModelError, match="mine: what is counted as written overwrites and folds nothing"):
        Convention("mine", "", as_written=True, overwrites=True)


def test_a_request_survives_as_plain_data():
    request = Request.of("25%", convention=PINNED, taps=[("layer2 in", "layer3 in")], dtype="int8", reorder=True)
    assert Request.from_plain(yaml.safe_load(yaml.safe_dump(request.to_plain()))) == request
    factors = Request.of(factors=[2, 1])
    assert Request.from_plain(factors.to_plain()) == factors
    assert (factors.goal, factors.limit(100)) == ("factors", None)


def test_a_student_of_the_first_format_is_read(student, tmp_path):
    student.save(tmp_path / "s")
    file = tmp_path / "s" / RECIPE
    recipe = yaml.safe_load(file.read_text())
    request = recipe.pop("request")
    flat = {key: request[key] for key in ("budget", "convention", "dtype", "reorder", "init")}
    file.write_text(yaml.safe_dump({**recipe, **flat, "objective": "factors", "format": 1}))
    again = redistill.load_student(tmp_path / "s", small_resnet()).eval()
    assert torch.equal(again(X), student(X))
    assert again.provenance.request == student.provenance.request
