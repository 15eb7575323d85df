"""Pixel shuffles and space-to-depth between grids that are pooled unequally."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import redistill
from redistill.compiler.analysis import analyze
from redistill.passes.reshuffling import Reshuffle

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def repeated(x, times):
    return x.repeat_interleave(times, 2).repeat_interleave(times, 3)


@pytest.mark.parametrize(("own", "times"), [(2, 1), (2, 2), (2, 4), (4, 2), (3, 6)])
def test_a_shuffle_reads_and_writes_the_same_channels_on_any_grid(own, times):
    x, y = torch.randn(2, 3, 12, 12), torch.randn(2, 2 * own * own, 4, 4)
    copies, cells = max(1, own // times), max(1, times // own)
    folded = F.pixel_unshuffle(F.avg_pool2d(repeated(x, copies), cells), own)
    assert torch.allclose(Reshuffle(own, times, down=True)(x), folded)
    unfolded = repeated(F.avg_pool2d(F.pixel_shuffle(y, own), copies), cells)
    assert torch.allclose(Reshuffle(own, times, down=False)(y), unfolded, atol=1e-6)


class Restorer(nn.Module):
    """Levels joined by space-to-depth and pixel shuffles, as restorers have them; and a global residual."""

    def __init__(self, of_functions=False):
        super().__init__()
        self.first, self.less = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.second, self.fewer = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.third, self.more = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 128, 1)
        self.joined, self.most = nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 64, 1)
        self.last = nn.Conv2d(32, 3, 3, padding=1)
        down, up = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.down = (lambda x: F.pixel_unshuffle(x, downscale_factor=2)) if of_functions else down
        self.up = (lambda x: torch.pixel_shuffle(x, 2)) if of_functions else up

    def forward(self, x):
        one = self.first(x).relu()
        two = self.second(self.down(self.less(one))).relu()
        three = self.third(self.down(self.fewer(two))).relu()
        two = self.joined(torch.cat([self.up(self.more(three)), two], 1)).relu()
        return x + self.last(torch.cat([self.up(self.most(two)), one], 1))


@pytest.mark.parametrize("of_functions", [False, True])
def test_each_level_between_shuffles_has_a_factor_of_its_own(of_functions):
    teacher = Restorer(of_functions).eval()
    assert [s.grid for s in analyze(teacher, X).stages.free] == [(64, 64), (32, 32), (16, 16)]
    for factors in [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2)]:
        student = redistill.transform(teacher, X, factors=factors)
        assert student(X).shape == X.shape
        assert set(student.state_dict()) >= {"first.weight", "third.weight", "most.weight"}
    assert torch.allclose(redistill.transform(teacher, X, factors=(1, 1, 1))(X), teacher(X), atol=1e-5)


def test_a_saved_student_of_unequal_levels_loads_and_patches_go_beside(tmp_path):
    teacher = Restorer().eval()
    student = redistill.transform(teacher, X, budget="1.5x", taps="auto").eval()
    assert student.plan.macs_kept > 0.3
    assert torch.equal(redistill.load_student(student.save(tmp_path / "student"), teacher).eval()(X), student(X))
    both = redistill.transform(teacher, X, budget="6x", levers=("patches", "pool"))
    assert both(X).shape == X.shape


def test_a_last_shuffle_belongs_to_the_tail():
    network = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 12, 3, 1, 1), nn.PixelShuffle(2))
    student = redistill.transform(network.eval(), X, factors=(2,))
    assert student(X).shape == (1, 3, 128, 128)
