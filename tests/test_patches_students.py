"""Students with patches: one module that trains whole and runs piece by piece; levers together; what is refused."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill import Student, load_student, measure, profile, transform
from redistill.cli import run
from redistill.commands.transform import main
from redistill.compiler.analysis import analyze
from redistill.compiler.levers import patch_alone
from redistill.compiler.patching import patch
from redistill.compiler.request import Request
from redistill.compiler.rewriting import rewrite
from redistill.errors import InfeasibleBudgetError, PlanError
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.report import align_steps, format_bytes, plot, stage_rows, to_json, write_page
from redistill.report.ladder import find_ladder
from redistill.report.phrases import step_place
from redistill.report.plots import _spread, outline
from redistill.tracing.linear_calls import find_own_padding
from tests.graphs import image
from tests.test_patches import Excited


def block(before: int, after: int, stride: int) -> nn.Sequential:
    """An inverted bottleneck: wide in the middle."""
    wide = 4 * before
    return nn.Sequential(
        nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
        nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
        nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
    )  # fmt: skip


class Classifier(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(True))
        self.blocks = nn.Sequential(block(width, 12, 2), block(12, 12, 1), block(12, 16, 2), block(16, 16, 1))
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.register_buffer("shift", torch.full((16, 1, 1), 0.1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)) * self.scale + self.shift
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = Classifier()
    for _ in range(3):
        model(image(3, 8, 32))
    return model.eval()


@pytest.fixture(scope="module")
def student(teacher: nn.Module) -> Student:
    return transform(teacher, image(3, 1, 32), "3x", levers=("patches",)).eval()


def gated() -> nn.Module:
    """A network with squeeze and excitation where its maps are largest."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(Excited("residual", channels=24), *head).eval()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_outputs_are_the_teachers_in_a_third_of_the_memory(teacher: nn.Module, student: Student) -> None:
    x = image(3, 2, 32)
    assert student.patches is not None
    assert student.patches.regions
    assert difference(student(x), teacher(x)) <= 1e-5
    assert difference(copy.deepcopy(student).double()(x.double()), copy.deepcopy(teacher).double()(x.double())) <= 1e-12
    assert 3 * student.profile.peak_bytes <= student.teacher_profile.peak_bytes
    assert student.state_dict().keys() == teacher.state_dict().keys()


@pytest.mark.parametrize("convention", ["deploy", "arena", "graph"])
def test_promise_holds_under_every_convention(teacher: nn.Module, convention: str) -> None:
    x = image(3, 1, 32)
    student = transform(teacher, x, "1.5x", convention, levers="patches").eval()
    assert profile(student, x, convention).peak_bytes == student.plan.peak_bytes <= (student.plan.limit or 0)
    assert measure(student, x) == profile(student, x, "graph").peak_bytes
    assert difference(student(x), teacher(x)) <= 1e-5


def test_trains_whole_and_atother_sizes_runs_whole(teacher: nn.Module, student: Student) -> None:
    trained, reference, x = copy.deepcopy(student).train(), copy.deepcopy(teacher).train(), image(3, 4, 32)
    assert torch.equal(trained(x), reference(x))
    assert torch.equal(trained.get_buffer("stem.1.running_mean"), reference.get_buffer("stem.1.running_mean"))
    other = image(3, 2, 48)
    assert torch.equal(student(other), teacher(other))


def test_a_step_of_training_is_seen_when_running_piece_by_piece(student: Student) -> None:
    trained, x = copy.deepcopy(student).train(), image(3, 4, 32)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(x).square().sum().backward()
    optimiser.step()
    trained.eval()
    whole = copy.deepcopy(trained)
    whole.meta.pop("deployed")
    whole.recompile()
    assert difference(trained(x), whole(x)) <= 1e-5
    assert difference(trained(x), student(x)) > 1e-3


def test_copies_and_loads_share_nothing_with_what_they_came_from(student: Student, tmp_path: Path) -> None:
    x, twin = image(3, 1, 32), copy.deepcopy(student)
    before = student(x)
    assert torch.equal(twin(x), before)
    twin.load_state_dict({k: torch.zeros_like(v) for k, v in student.state_dict().items()}, assign=True)
    assert torch.equal(student(x), before)
    assert twin(x).abs().max() == 0
    student.save(tmp_path / "student")
    loaded = load_student(tmp_path / "student", Classifier()).eval()
    assert torch.equal(loaded(x), before)
    assert loaded.patches == student.patches
    assert loaded.provenance.request == student.provenance.request


def test_a_gate_in_pieces_is_saved_copied_and_compiled(tmp_path: Path) -> None:
    x, teacher = image(3, 2, 64), gated()
    student = transform(teacher, x[:1].clone(), "2x", levers="patches", max_extra_macs=1).eval()
    assert student.patches is not None
    assert any("summed" in step.node for step in student.profile.timeline)
    assert measure(student, x[:1].clone()) == profile(student, x[:1].clone(), "graph").peak_bytes
    assert difference(student(x), teacher(x)) <= 1e-5
    assert torch.equal(copy.deepcopy(student)(x), student(x))
    assert torch.equal(torch.compile(student, backend="eager", fullgraph=True)(x), student(x))
    student.save(tmp_path / "student")
    assert torch.equal(load_student(tmp_path / "student", gated()).eval()(x), student(x))
    plot(student.comparison(), tmp_path / "plot.png")
    assert str(student.patches.regions[0]) in student.report()


def test_compiles(student: Student) -> None:
    x = image(3, 1, 32)
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), student(x))


def test_a_generous_budget_leaves_the_teacher_as_it_is(teacher: nn.Module) -> None:
    student = transform(teacher, image(3, 1, 32), "1x", levers=["patches"])
    assert student.patches is not None
    assert not student.patches.regions
    assert any("as it is" in note for note in student.provenance.notes)


def test_both_levers_pool_only_what_patches_cannot_do(teacher: nn.Module) -> None:
    x = image(3, 1, 32)
    pooled = transform(teacher, x, "8x", taps="none")
    both = transform(teacher, x, "8x", taps="none", levers=("pool", "patches")).eval()
    assert both.plan.macs_kept > pooled.plan.macs_kept
    assert both.profile.peak_bytes <= (both.plan.limit or 0)
    assert measure(both, x) == profile(both, x, "graph").peak_bytes
    whole = copy.deepcopy(both)
    whole.meta.pop("deployed", None)
    whole.recompile()
    assert difference(both(x), whole(x)) <= 1e-5


def test_taps_count_within_the_budget_when_patched(teacher: nn.Module, tmp_path: Path) -> None:
    x = image(3, 1, 32)
    student = transform(teacher, x, "5x", levers=("patches", "pool"), max_extra_macs=0.02).eval()
    assert student.profile.peak_bytes <= (student.plan.limit or 0)
    output, taps = student.tapped()(x)
    assert set(taps) == {tap.name for tap in student.taps}
    assert difference(output, student(x)) <= 1e-5
    student.save(tmp_path / "s")
    assert torch.equal(load_student(tmp_path / "s", Classifier()).eval()(x), student(x))


JOINT = {
    "classifier": Classifier(4),
    "plain": nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ),
    "pools": nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.MaxPool2d(2),
        nn.Conv2d(24, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
    ),
    "group norm": nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ),
    "gate": gated(),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("budget", ["4x", "8x"])
def test_joint_plan_is_the_best_of_all(name: str, budget: str) -> None:
    x = image(3, 1, 16)
    request = Request.of(budget, taps="none", levers=("patches", "pool"), max_extra_macs=0.1)
    analysis = analyze(JOINT[name].eval(), (x,))
    limit = request.limit(analysis.profile.peak_bytes) or 0
    expected = None
    for restore in (True, False):
        problem = ScalingModel(
            analysis.stages, analysis.convention, candidate_factors(analysis.stages, restore)
        ).problem()
        scores = []
        for plan in problem.enumerate():
            try:
                rewritten = rewrite(analysis, problem.factors(plan), ())
            except PlanError:
                continue
            if patch(analysis, rewritten, limit, request.max_extra_macs) is not None:
                scores.append(problem.total_macs(plan))
        if scores:
            expected = max(scores)
            break
    try:
        student = transform(JOINT[name], x, budget, taps="none", levers=("patches", "pool"), max_extra_macs=0.1)
    except InfeasibleBudgetError:
        assert expected is None
        return
    plan = tuple(c.index(f) for c, f in zip(problem.choices, student.plan.by_stage, strict=True))
    assert expected == problem.total_macs(plan)
    assert patch_alone(analysis, request, limit) is None or set(student.plan.by_stage) == {1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levers": ("patch",)}, "unknown lever 'patch'.*patches"),
        ({"levers": ()}, "without a lever"),
        ({"levers": ("patches",), "max_extra_macs": -0.1}, "share from 0 on"),
        ({"levers": ("patches",), "max_extra_macs": float("nan")}, "share from 0 on"),
        ({"levers": ("patches",), "factors": (1, 1, 1)}, "no budget for patches"),
    ],
)
def test_what_cannot_be_used_is_named(teacher: nn.Module, options: dict[str, object], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        transform(teacher, image(3, 1, 32), **options)  # type: ignore[arg-type]


def test_a_network_with_nothing_to_patch_says_why() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 3), nn.GroupNorm(3, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(InfeasibleBudgetError, match="nothing at its peak can be run in parts; pool as well"):
        transform(model, image(3, 1, 32), "2x", levers=("patches",))


def test_out_of_reach_says_what_can_be_had(teacher: nn.Module) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"the best that can be had is .* at \+.* % MACs"):
        transform(teacher, image(3, 1, 32), "50x", levers=("patches",))


def test_the_command_line_takes_levers(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "torchvision:mobilenet_v2?width_mult=0.35", "--input", "3x64x64", "--budget", "2x"]
    assert run(main, [*small, "--levers", "patches", "--measure"]) == 0
    assert "budget met" in capsys.readouterr().out
    assert run(main, [*small, "--levers", "squeeze"]) == 2
    assert "unknown lever 'squeeze'" in capsys.readouterr().err
    assert run(main, [*small, "--levers", "patches", "--max-extra-macs", "-1"]) == 2
    assert "a share from 0 on" in capsys.readouterr().err


class PadsByItself(nn.Conv2d):
    """Zero padding that follows from its stride and the size that comes, more of it at the end."""

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        lacking = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = F.pad(x, 2 * (lacking // 2, lacking - lacking // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ScalesToo(PadsByItself):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("convention", ["deploy", "graph"])
def test_convolutions_that_pad_by_themselves_are_run_in_parts(convention: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        PadsByItself(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), PadsByItself(16, 16, 5, 1, groups=16),
        nn.ReLU(), PadsByItself(16, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x = image(3, 2, 64)
    student = transform(network, x, "1.3x", convention, levers="patches").eval()
    assert student.patches is not None
    assert student.patches.regions
    with torch.no_grad():
        torch.testing.assert_close(student(x), network(x))
    if convention == "graph":
        assert measure(student, x) == student.plan.peak_bytes


def test_what_does_more_than_pad_is_not_taken_for_a_convolution() -> None:
    shape = (1, 3, 16, 16)
    assert find_own_padding(PadsByItself(3, 4, 3, 2), shape) == (0, 0)
    assert find_own_padding(PadsByItself(3, 4, 5, 1), shape) == (2, 2)
    assert find_own_padding(ScalesToo(3, 4, 3, 1), shape) is None


def test_reports_show_the_ladder_of_levers(student: Student, tmp_path: Path) -> None:
    comparison = student.comparison()
    rungs = find_ladder(comparison)
    assert [rung.lever for rung in rungs] == ["nothing in place", "in place, in this order", "patches"]
    assert [rung.bytes for rung in rungs] == sorted((rung.bytes for rung in rungs), reverse=True)
    assert student.patches is not None
    data = to_json(comparison)
    assert data["patches"] == student.patches.to_plain()
    assert [rung["bytes"] for rung in data["ladder"]] == [rung.bytes for rung in rungs]
    assert data["macs_kept"] == 1.0
    assert data["teacher"]["macs"] + data["extra_macs"] == data["student"]["macs"]
    write_page(comparison, tmp_path / "page.html")
    for text in (student.report(), (tmp_path / "page.html").read_text()):
        assert "outputs unchanged" in text
        assert all(rung.lever in text and format_bytes(rung.bytes) in text for rung in rungs)
        assert all(str(region) in text for region in student.patches.regions)
        assert f"patches: {student.patches.certificate}" in text


def test_the_order_is_a_rung_of_its_own() -> None:
    class Branches(nn.Module):
        """The wide branch had better run first."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
            self.wide, self.back = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            narrow = self.narrow(x)
            return torch.cat([narrow, self.back(self.wide(x))], 1)

    found = [transform(Branches(), image(3, 1, 16), "1x", reorder=reorder) for reorder in (False, True)]
    plain, ordered = (find_ladder(each.comparison()) for each in found)
    assert [rung.lever for rung in ordered[1:]] == [
        "in place, in its own order",
        "in place, in the order of least memory",
    ]
    assert ordered[:1] == plain[:1]
    assert ordered[1].bytes == plain[1].bytes > ordered[2].bytes == found[1].teacher_profile.peak_bytes


def test_the_timeline_says_which_tile_of_how_many(student: Student) -> None:
    comparison = student.comparison()
    assert student.patches is not None
    (first, *_) = student.patches.regions
    places = [step_place(step) for step in student.profile.timeline]
    assert all(any(f"tile {n} of {first.form.tiles}" in place for place in places) for n in range(1, first.form.tiles))
    for row in stage_rows(comparison):  # what a piece needs and computes counts where the whole would
        assert row.student_macs >= row.teacher_macs
        assert (row.student_peak > 0) == (row.teacher_peak > 0)
    columns = align_steps(comparison.teacher, comparison.student)
    assert [s for _, s in columns if s is not None] == list(range(len(comparison.student.timeline)))
    theirs = [t for t, _ in columns if t is not None]
    assert theirs == sorted(theirs)
    assert set(theirs) == set(range(len(comparison.teacher.timeline)))
    _, sections = outline(comparison)
    assert [s.detail for s in sections if s.detail.startswith("in ")] == [
        f"in {r.form}" for r in student.patches.regions
    ]


def test_rungs_are_spread_where_they_are_close() -> None:
    places = _spread([9.0, 8.9, 8.8, 0.1, 0.0], 1.0, 10.0)
    assert all(above - below >= 1.0 - 1e-9 for above, below in pairwise(places))
    assert 0 < places[-1] < places[0] < 10
    assert _spread([8.0, 4.0], 1.0, 10.0) == [8.0, 4.0]


def test_macs_kept_are_the_teachers_own_and_what_patches_would_do_is_said(teacher: nn.Module) -> None:
    pooled = transform(teacher, image(3, 1, 32), "3x", taps="auto")
    data = to_json(pooled.comparison())
    own = data["student"]["macs"] - data["red_macs"]
    assert pooled.taps
    assert pooled.plan.macs_kept == pytest.approx(own / data["teacher"]["macs"])
    assert any("patches alone would meet this budget" in note for note in pooled.provenance.notes)


class Registers(nn.Module):
    """Some of its maps are empty, as where a transformer has no tokens of a kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        return self.body(torch.cat([x[:, :, :0] * 2, x], 2)).mean((2, 3))


def test_empty_maps_are_no_obstacle():
    student = transform(Registers(), torch.zeros(1, 3, 32, 32), "1.5x", taps="none")
    assert student.plan.peak_bytes <= student.plan.limit


def test_a_long_network_is_not_searched_by_the_way(monkeypatch):
    monkeypatch.setattr("redistill.compiler.levers.MOST_REGIONS", 2)
    student = transform(Registers(), torch.zeros(1, 3, 32, 32), "1.5x", taps="none")
    assert any("levers patches does" in note for note in student.provenance.notes)


class TwoMaps(nn.Conv2d):
    """A convolution of coarse and fine channels, which it takes and gives apart."""

    def forward(self, fine, coarse):
        found = super().forward(fine)
        return found, found if coarse is None else found + coarse


def test_a_convolution_of_several_maps_has_no_padding_of_its_own():
    assert find_own_padding(TwoMaps(3, 4, 3), (1, 3, 8, 8)) is None
