"""One's own passes, objectives and conventions: as objects, as classes or functions, and as package.module:Name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

import redistill
from redistill.compiler.request import Request
from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.errors import InfeasibleBudgetError, ModelError, PassError, StudentError, TrustError
from redistill.models.red_block import REDBlock
from redistill.passes.attach_taps import AttachTapsPass
from redistill.passes.insert_pooling import InsertPoolingPass
from redistill.passes.reorder import ReorderPass
from redistill.planning.objectives import Objective
from redistill.trainers.classifier import ClassifierExperiment

IMAGES = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PINNED = redistill.Convention("pinned", "as deploy, with the input held", overwrites=True, pins_input=True)


class Widen(PassBase):
    """Puts a larger map beside each ReLU's: more memory, the same output."""

    def call(self, graph_module):
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(node.target), nn.ReLU):
                with graph_module.graph.inserting_after(node):
                    twice = graph_module.graph.call_function(torch.cat, ([node, node], 1))
                with graph_module.graph.inserting_after(twice):
                    half = graph_module.graph.call_function(torch.narrow, (twice, 1, 0, node.meta.get("width", 8)))
                node.replace_all_uses_with(half, delete_user_cb=lambda user, twice=twice: user is not twice)
        graph_module.recompile()
        return PassResult(graph_module, True)


def negate(graph_module):
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        output.args = (graph_module.graph.call_function(torch.neg, (output.args[0],)),)
    graph_module.recompile()


def drop_a_class(graph_module):
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        output.args = (graph_module.graph.call_function(torch.narrow, (output.args[0], 1, 0, 2)),)


def fail(graph_module):
    raise ZeroDivisionError("no luck")


def keep_the_first_grid(problem):
    return tuple(-np.log2(choices) * (100 if s == 0 else 1) for s, choices in enumerate(problem.choices))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(i, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
        for i, stride in ((3, 1), (8, 1), (8, 2), (8, 2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("given", [negate, f"{__name__}:negate"])
def test_a_pass_runs_after_ours_and_is_remembered(teacher, tmp_path, given):
    plain = redistill.transform(teacher, IMAGES, budget="2x", taps="none").eval()
    student = redistill.transform(teacher, IMAGES, budget="2x", taps="none", passes=[given]).eval()
    assert torch.equal(student(IMAGES), -plain(IMAGES))
    student.save(tmp_path / "student")
    again = redistill.load_student(tmp_path / "student", teacher, passes=[negate]).eval()
    assert torch.equal(again(IMAGES), student(IMAGES))
    with pytest.raises(StudentError, match=rf"made with the passes {__name__}:negate; give these"):
        redistill.load_student(tmp_path / "student", teacher)


@pytest.mark.parametrize("given", [Widen(), Widen, f"{__name__}:Widen"])
def test_what_a_pass_needs_counts_within_the_budget(teacher, given):
    plain = redistill.transform(teacher, IMAGES, budget="3x", taps="none")
    student = redistill.transform(teacher, IMAGES, budget="3x", taps="none", passes=[given])
    assert student.plan.peak_bytes * 3 <= student.teacher_profile.peak_bytes
    assert student.plan.macs_kept < plain.plan.macs_kept
    assert student.profile.peak_bytes == redistill.profile(student, IMAGES).peak_bytes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (fail, "pass .*:fail failed: ZeroDivisionError: no luck"),
        (drop_a_class, "after .*:drop_a_class the graph does not hold: the output would change from"),
        (lambda graph_module: 3, "returned a int"),
        ("nowhere.passes:Mine", "cannot import nowhere"),
        ("negate", "package.module:Name"),
        (3, "3 is no pass"),
    ],
)
def test_a_pass_that_does_not_work_is_named(teacher, given, words):
    with pytest.raises(PassError, match=words) as caught:
        redistill.transform(teacher, IMAGES, budget="2x", passes=[given])
    assert "\n" not in str(caught.value)


def test_passes_run_by_hand_are_checked_too(teacher):
    graph_module = torch.fx.symbolic_trace(teacher)
    for each in (ReorderPass(), InsertPoolingPass()):
        with pytest.raises(Exception, match="shape of the input input_1 is not known"):
            each(graph_module)
    graph_module.add_submodule("red.lost", REDBlock(8))
    with pytest.raises(PassError, match="RED blocks lost stand nowhere"):
        AttachTapsPass()(graph_module)


@pytest.mark.parametrize(
    "given", [keep_the_first_grid, f"{__name__}:keep_the_first_grid", Objective("mine", keep_the_first_grid)]
)
def test_an_objective_of_ones_own_decides(teacher, given):
    ours = redistill.transform(teacher, IMAGES, budget="1.2x", taps="none", objective="earliest").plan
    mine = redistill.transform(teacher, IMAGES, factors=None, budget="1.2x", taps="none", objective=given).plan
    assert mine.factors != ours.factors or ours.factors[0] == 1
    assert mine.objective in ("mine", "keep_the_first_grid", f"{__name__}:keep_the_first_grid")
    assert mine.certificate is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda problem: (), "one score for each choice of each stage"),
        (3, "3 is no objective"),
        (f"{__name__}:IMAGES", "is no objective"),
        ("mac", "no objective 'mac'; did you mean 'macs'"),
    ],
)
def test_what_is_no_objective_is_refused(teacher, given, words):
    with pytest.raises(ModelError, match=words):
        redistill.transform(teacher, IMAGES, objective=given)


@pytest.mark.parametrize("given", [PINNED, f"{__name__}:PINNED"])
def test_a_convention_of_ones_own_counts_and_is_kept(teacher, tmp_path, given):
    assert redistill.profile(teacher, IMAGES, given).peak_bytes >= redistill.profile(teacher, IMAGES).peak_bytes
    student = redistill.transform(teacher, IMAGES, budget="2x", convention=given)
    student.save(tmp_path / "student")
    again = redistill.load_student(tmp_path / "student", teacher)
    assert again.plan.peak_bytes == student.plan.peak_bytes
    assert again.provenance.request.convention == PINNED


def test_a_request_that_is_read_imports_nothing():
    with pytest.raises(ModelError, match="no convention 'antigravity:fly'"):
        Request.from_plain({"convention": "antigravity:fly"})
    assert Request.from_plain({"passes": ["antigravity:fly"]}).passes == ()


def test_an_infeasible_budget_is_not_the_passes_fault(teacher):
    with pytest.raises(InfeasibleBudgetError, match="the best that can be had"):
        redistill.transform(teacher, IMAGES, budget="1000x", passes=[negate])


@pytest.mark.parametrize(
    "setting",
    [
        "data.name=antigravity:fly",
        "distillation.methods=kd+antigravity:Fly",
        "student.objective=antigravity:fly",
        "student.convention=antigravity:FLY",
    ],
)
def test_a_configuration_imports_nothing_without_trust(tmp_path, setting):
    config = load(ClassifierConfig, "digits/smoke.yaml", [setting])
    with pytest.raises(TrustError, match=rf"{setting.split('=')[0]}.* --trust"):
        ClassifierExperiment(config, tmp_path)


def test_a_script_that_ends_itself_while_it_is_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"cannot import ending .*SystemExit"):
        redistill.transform(nn.Conv2d(3, 4, 3), IMAGES, convention="ending:Own")
