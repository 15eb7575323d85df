"""Maps that a network returns and reads on: it goes on from a coarser grid, what it returns keeps its size."""

import pytest
import torch
from torch import nn

import redistill
from redistill.compiler.analysis import analyze
from redistill.errors import InfeasibleBudgetError

X = torch.randn(1, 3, 46, 50, generator=torch.Generator().manual_seed(0))


class Features(nn.Module):
    """A wide stage, a narrow map of its grid that is returned and read on, and a head."""

    def __init__(self, ending=lambda x: x):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 64, 3, 1, 1)
        self.narrow, self.down = nn.Conv2d(64, 4, 3, 1, 1), nn.Conv2d(4, 16, 3, 2, 1)
        self.head, self.ending = nn.Conv2d(16, 5, 1), ending

    def forward(self, x):
        feature = self.narrow(self.wide(self.stem(x).relu()).relu()).relu()
        return self.head(self.down(feature)).mean((2, 3)), {"feature": self.ending(feature)}


def test_a_map_that_is_returned_is_enlarged_cell_by_cell():
    teacher = Features().eval()
    student = redistill.transform(teacher, X, budget="2x")
    assert student.plan.factors == (2, 1)
    assert student.plan.peak_bytes * 2 <= student.teacher_profile.peak_bytes
    assert any(note.startswith("returned and read on, enlarged") for note in student.provenance.notes)
    logits, features = student(X)
    assert features["feature"].shape == (1, 4, 23, 25)
    inner = student.narrow(student.wide(student.stem(X).relu()).relu()).relu()
    assert inner.shape == (1, 4, 12, 13)
    assert torch.equal(features["feature"], inner.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :23, :25])
    assert torch.equal(logits, student.head(student.down(inner)).mean((2, 3)))
    assert redistill.measure(student, X) == redistill.profile(student, X, "graph").peak_bytes


def test_unpooled_nothing_is_enlarged_nor_copied(tmp_path):
    teacher = Features().eval()
    student = redistill.transform(teacher, X, factors=[1, 1])
    assert not any(isinstance(part, nn.Upsample) for part in student.modules())
    assert student.plan.peak_bytes == student.teacher_profile.peak_bytes
    expected, found = teacher(X), student(X)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1]["feature"], expected[1]["feature"])
    pooled = redistill.transform(teacher, X, factors=[2, 1])
    loaded = redistill.load_student(pooled.save(tmp_path / "student"), teacher)
    assert torch.equal(loaded(X)[1]["feature"], pooled(X)[1]["feature"])


@pytest.mark.parametrize(
    "ending",
    [lambda x: x.permute(0, 2, 3, 1), lambda x: x > 0, lambda x: x.flatten(2)],
    ids=["channels last", "a mask", "a list of positions"],
)
def test_what_is_no_batch_of_maps_fixes_its_grid_as_before(ending):
    teacher = Features(ending).eval()
    assert not analyze(teacher, X).stages.returned
    with pytest.raises(InfeasibleBudgetError, match="it is an output"):
        redistill.transform(teacher, X, budget="3x")


class WideFeatures(Features):
    """What is returned is wide: enlarged at the end, it is a coarse student's peak."""

    def __init__(self):
        super().__init__()
        self.narrow, self.down = nn.Conv2d(64, 16, 3, 1, 1), nn.Conv2d(16, 64, 3, 2, 1)
        self.head = nn.Conv2d(64, 5, 1)


def test_a_refusal_names_the_best_of_what_was_carried_out():
    teacher = WideFeatures().eval()
    students = {f: redistill.transform(teacher, X, factors=[f, 1 if f == 1 else f // 2]) for f in (1, 2, 4, 8, 16)}
    peaks = {factor: student.plan.peak_bytes for factor, student in students.items()}
    assert peaks[16] > peaks[4] == min(peaks.values())  # the coarsest is not the smallest: enlarging is its peak
    with pytest.raises(InfeasibleBudgetError, match=f"{peaks[1] / peaks[4]:.2f}x, at factors 4,2"):
        redistill.transform(teacher, X, budget="50x")
    assert redistill.transform(teacher, X, budget=peaks[4]).plan.peak_bytes == peaks[4]
