"""What a refusal says, and how soon; taps on grids that really arise; names that clash with the library's own."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import redistill
from redistill.compiler import choosing
from redistill.compiler.analysis import analyze
from redistill.compiler.failures import CONVINCING, Failures
from redistill.errors import InfeasibleBudgetError, ModelError, PlanError
from redistill.passes.insert_pooling import MisfitError


def layer(cin, cout, stride=2, padding=1):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, padding, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def refusal(module, x, budget="2x"):
    with pytest.raises(InfeasibleBudgetError) as caught:
        redistill.transform(module.eval(), x, budget)
    return str(caught.value)


class Windows(nn.Module):
    """Attention in windows whose number was counted when the network was built."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.out = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 32), nn.Linear(32, 5)
        self.register_buffer("mask", torch.zeros(16, 1, 1))

    def forward(self, x):
        y = self.patches(x)
        b, c, h, w = y.shape
        y = y.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        scores = (self.mix(y) @ y.transpose(1, 2)).view(-1, 16, 16, 16) + self.mask
        return self.out((scores.softmax(-1).view(-1, 16, 16) @ y).view(b, -1, c).mean(1))


def test_a_refusal_names_the_view_that_no_plan_fits():
    text = refusal(Windows(), torch.randn(1, 3, 64, 64))
    assert "1.00x" in text
    assert re.search(r"\d+ plans did not hold when carried out, (all|\d+) because .* at view\w* \(view\)", text)
    assert "choose pooling factors that divide its grids" in text


class ReadsSize(nn.Module):
    """Pads by a number that Python computed of the size."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, 2) for i, o in ((3, 24), (24, 32), (32, 48))])
        self.head = head(48)

    def forward(self, x):
        for conv in self.convs:
            more = sum(1 for row in range(x.shape[-1]) if row == 0)
            x = conv(F.pad(x, (0, more, 0, more))).relu()
        return self.head(x)


def test_control_flow_that_reads_sizes_fixes_its_stage_before_any_plan_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(choosing, "pool", lambda *a: tried.append(a) or pytest.fail("a plan was carried out"))
    text = refusal(ReadsSize(), torch.randn(1, 3, 64, 64))
    assert not tried
    assert re.search(r"convs.0 cannot be pooled, for control flow at .*test_refusals.py:\d+ reads its very size", text)


def test_an_input_without_a_spatial_side_is_said():
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    assert "no side of an input is one that a convolution or pool slides over" in refusal(module, torch.randn(4, 64))


def test_position_embeddings_name_the_module_that_fixes_the_grid():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.position = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.zeros(1, 64, 32))
            self.mix, self.out = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), nn.Linear(32, 5)

        def forward(self, x):
            return self.out(self.mix(self.patches(x).flatten(2).transpose(1, 2) + self.position).mean(1))

    text = refusal(Transformer(), torch.randn(1, 3, 64, 64))
    assert "patches cannot be pooled, for add" in text
    assert "add needs this very size, that of position 1x64x32" in text


def test_tables_of_biases_are_named_though_they_are_picked_from():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.biases, self.softmax = nn.Parameter(torch.zeros(2, 16)), nn.Softmax(-1)
            self.register_buffer("places", torch.arange(256).reshape(16, 16) % 16)

        def forward(self, x):
            scores = x.flatten(2).transpose(1, 2) @ x.flatten(2)
            return self.softmax(scores[:, None] + self.biases[:, self.places]).mean((1, 2, 3))

    hybrid = nn.Sequential(layer(3, 16), layer(16, 32), Attention())
    text = refusal(hybrid, torch.randn(1, 3, 16, 16))
    assert "(2) needs this very size, that of 2.biases 2x16" in text


def test_what_fails_again_and_again_at_one_operation_is_not_tried_any_more():
    module = nn.Sequential(layer(3, 16), layer(16, 32), layer(32, 48), head(48)).eval()
    analysis = analyze(module, (torch.randn(1, 3, 64, 64),))
    node = next(n for n in analysis.graph_module.graph.nodes if n.name == "_1_2")
    problem = choosing.planning_problem(analysis, with_taps=False, restore_deepest=False)
    with Failures(analysis) as failures:
        for factors in ((1, 4, 2, 1), (1, 4, 2, 2), (1, 8, 2, 1))[:CONVINCING]:
            assert failures.forbidden(problem) == frozenset()
            failures.note(MisfitError(node, "too short"), factors)
        (part,) = failures.forbidden(problem)
    assert [(s, problem.choices[s][i]) for s, i in part] == [(2, 2)]
    assert "3 plans did not hold when carried out, all because" in failures.summary()


def test_a_plan_at_which_a_module_raises_is_left_out():
    class Own(nn.Conv2d):
        def forward(self, x):
            if self.stride == (4, 4):
                raise KeyError(self.stride)
            return super().forward(x)

    def network(kind):
        return nn.Sequential(kind(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 8, 3, 2, 1), nn.ReLU(), head(8)).eval()

    x = torch.zeros(1, 3, 64, 64)
    assert redistill.transform(network(nn.Conv2d), x, "2x", taps="none").plan.factors[0] == 2
    assert redistill.transform(network(Own), x, "2x", taps="none").plan.factors[0] == 4
    with pytest.raises(PlanError, match="KeyError"):
        redistill.transform(network(Own), x, factors=[2, 1], taps="none")


def test_a_search_ends_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr("redistill.compiler.failures.MAX_SECONDS", -1.0)
    module = nn.Sequential(layer(3, 16), layer(16, 32), head(32))
    with pytest.raises(InfeasibleBudgetError):
        redistill.transform(module.eval(), torch.randn(1, 3, 64, 64), "2x")


class Queries(nn.Module):
    """As many of the positions as there are, but no more than 200: at twice the size no more, at half fewer."""

    def __init__(self):
        super().__init__()
        self.body, self.wide = nn.Sequential(layer(3, 16), layer(16, 16)), nn.Linear(16, 512)

    def forward(self, x):
        maps = self.body(x)
        tokens = maps.flatten(2).transpose(1, 2)
        order = tokens.sum(2).topk(min(200, tokens.shape[1]), 1).indices
        return (
            self.wide(tokens.gather(1, order[..., None].expand(-1, -1, 16))).relu().mean(1)
            + maps.mean((1, 2, 3))[:, None]
        )


def test_what_shrinks_otherwise_than_its_grid_is_found_by_carrying_the_least_plan_out():
    student = redistill.transform(Queries().eval(), torch.zeros(1, 3, 64, 64), "2x", taps="none")
    assert student.plan.peak_bytes <= student.teacher_profile.peak_bytes / 2
    assert any("shrinks otherwise than its grids" in note for note in student.provenance.notes)


def test_a_coarse_lattice_is_said():
    module = nn.Sequential(layer(3, 16, 1), layer(16, 16, 1), nn.Conv2d(16, 3, 3, padding=1)).eval()
    student = redistill.transform(module, torch.randn(1, 3, 64, 64), "2x", taps="none")
    note = next(n for n in student.provenance.notes if "asked" in n)
    assert note == "2.00x asked, 4.00x is the mildest that fits: all that can be pooled is one stage"


class Style(nn.Module):
    """Pads in modules of their own before unpadded convolutions."""

    def __init__(self, pad):
        super().__init__()

        def conv(cin, cout, kernel, stride=1):
            return nn.Sequential(pad(kernel // 2), nn.Conv2d(cin, cout, kernel, stride), nn.ReLU())

        self.down = nn.Sequential(conv(3, 16, 9), conv(16, 32, 3, 2), conv(32, 48, 3, 2), conv(48, 48, 3))
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2), conv(48, 32, 3), nn.Upsample(scale_factor=2), conv(32, 16, 3), conv(16, 3, 9)
        )

    def forward(self, x):
        return self.up(self.down(x))


class Unpadded(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(layer(3, 32, 2, 0), layer(32, 48, 1, 0), layer(48, 48), layer(48, 48), layer(48, 48))
        self.head = head(48)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("module", [Style(nn.ReflectionPad2d), Style(nn.ZeroPad2d), Unpadded()])
@pytest.mark.parametrize("budget", ["2x", "3x", "4x"])
def test_taps_lie_on_the_grids_that_really_arise_and_a_saved_student_loads(module, budget, tmp_path):
    x = torch.randn(1, 3, 80, 80)
    student = redistill.transform(module.eval(), x, budget).eval()
    ours, theirs = student.tapped()(x)[1], student.teacher_tapped(module)(x)[1]
    assert {n: v.shape[2:] for n, v in ours.items()} == {n: v.shape[2:] for n, v in theirs.items()}
    assert all(tuple(ours[t.name].shape[2:]) == t.grid for t in student.taps)
    loaded = redistill.load_student(student.save(tmp_path / "student"), module)
    assert torch.equal(loaded.eval()(x), student(x))


@pytest.mark.parametrize("name", ["out", "output", "input", "plan", "profile", "red", "record", "report", "save", "x"])
def test_a_submodule_may_be_called_as_the_library_calls_its_own(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = layer(3, 16, 1), layer(16, 32), layer(48, 16, 1)
            self.add_module(name, nn.Conv2d(16, 2, 1))

        def forward(self, x):
            a = self.a(x)
            return getattr(self, name)(self.c(torch.cat([a, F.interpolate(self.b(a), scale_factor=2)], 1))).sigmoid()

    module, x = Net().eval(), torch.randn(1, 3, 32, 32)
    student = redistill.transform(module, x, "2x").eval()
    assert student(x).shape == module(x).shape
    assert any(k.startswith(f"{name}.") for k in student.state_dict())


@pytest.mark.parametrize("name", ["meta", "graph", "code", "recompile"])
def test_a_submodule_of_a_name_that_no_graph_can_have_is_named_with_the_remedy(name):
    module = nn.Sequential()
    module.add_module(name, nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)))
    module.add_module("pool", nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ModelError, match=rf"submodule {name} bears a name.*nn\.Sequential\(model\)"):
        redistill.transform(module, torch.zeros(1, 3, 32, 32), "1.5x")
    student = redistill.transform(nn.Sequential(module), torch.zeros(1, 3, 32, 32), "1.5x", taps="none")
    assert f"0.{name}.0.weight" in student.state_dict()


def test_a_wrong_plan_is_refused_with_its_place():
    with pytest.raises(PlanError, match="view_1"):
        redistill.transform(Windows().eval(), torch.randn(1, 3, 64, 64), factors=(2,))
