import copy
import importlib
import pkgutil

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import redistill
from redistill.compiler.pipeline import find_reentry, transform
from redistill.errors import BudgetError, InfeasibleBudgetError, ModelError, PlanError, StudentError, TapError
from redistill.memory.meter import measure
from redistill.models import example_inputs, load_model
from redistill.models.paper import PAPER_PAIRS

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=10).eval()


@pytest.fixture(scope="module")
def teacher():
    return resnet18()


@pytest.fixture(scope="module")
def student(teacher):
    return redistill.transform(teacher, X, budget="4x", taps="auto")


def test_the_student_fits_with_its_taps_and_keeps_the_output_shape(teacher, student):
    assert student.plan.peak_bytes <= student.teacher_profile.peak_bytes / 4
    assert student.profile.peak_bytes == redistill.profile(student, X).peak_bytes
    assert len(student.taps) > 0
    assert student(X).shape == teacher(X).shape == (1, 10)


def test_every_convention_and_type_is_kept(teacher):
    for convention, dtype in (("graph", None), ("arena", "int8"), ("eager", None), ("deploy", "bf16")):
        student = redistill.transform(teacher, X, "2x", convention, dtype=dtype)
        teachers = redistill.profile(teacher, X, convention, dtype).peak_bytes
        assert student.teacher_profile.peak_bytes == teachers
        assert redistill.profile(student, X, convention, dtype).peak_bytes <= teachers / 2
    assert redistill.profile(student, X, "graph").peak_bytes == measure(student, X)


def test_the_teachers_keys_and_weights_are_kept_and_the_teacher_is_untouched(teacher, student):
    fresh = resnet18()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in teacher.state_dict().items())
    for key, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[key], value)
        assert student.state_dict()[key].data_ptr() != value.data_ptr()
    assert {k.split(".")[0] for k in student.state_dict()} - {k.split(".")[0] for k in teacher.state_dict()} == {"red"}


@pytest.mark.parametrize("name", list(PAPER_PAIRS))
def test_the_papers_students_have_the_papers_peaks(name):
    pair = PAPER_PAIRS[name]
    model = load_model(pair.spec, "random")
    inputs = example_inputs(pair.spec, model, [pair.input_shape])
    student = redistill.transform(model, inputs, factors=pair.factors, taps="none")
    assert round(student.teacher_profile.peak_bytes / 2**20, 3) == pair.exact_teacher_mib
    assert round(student.plan.peak_bytes / 2**20, 3) == pair.exact_student_mib
    if pair.student_spec is not None:
        by_hand = load_model(pair.student_spec, "random").eval()
        by_hand.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(student(*inputs), by_hand(*inputs))


def test_the_optimal_plan_computes_more_than_the_papers_at_its_peak():
    model = torchvision.models.resnet18(weights=None)
    x = torch.zeros(1, 3, 224, 224)
    theirs = redistill.transform(model, x, factors=(4, 2, 2, 2, 1), taps="none")
    ours = redistill.transform(model, x, budget=theirs.plan.peak_bytes, taps="none")
    assert ours.plan.factors == (4, 2, 2, 1, 1)
    assert ours.plan.peak_bytes <= theirs.plan.peak_bytes
    assert round(ours.plan.macs_kept / theirs.plan.macs_kept, 2) == 1.42


def test_the_earliest_objective_pools_in_the_stem(teacher):
    student = redistill.transform(teacher, X, "4x", objective="earliest", taps="none")
    assert student.plan.factors == (4, 4, 4, 2, 1)


def test_a_segmenter_returns_to_the_size_of_its_input():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2
    ).eval()
    student = redistill.transform(model, X, "2x").eval()
    assert student(X)["out"].shape == model(X)["out"].shape == (1, 2, 64, 64)


def test_a_unet_returns_to_full_resolution_through_an_enlarged_tail():
    model = load_model("redistill:ddpm_unet?width=16", "random")
    inputs = (torch.randn(2, 3, 32, 32), torch.tensor([1, 500]))
    student = redistill.transform(model, inputs, "2x").eval()
    assert student(*inputs).shape == (2, 3, 32, 32)
    assert student.reentry is None
    other = (torch.randn(3, 3, 64, 64), torch.tensor([1, 2, 3]))
    assert student(*other).shape == (3, 3, 64, 64)


def test_the_student_runs_atother_sizes_and_batches(student):
    assert student.eval()(torch.randn(3, 3, 96, 128)).shape == (3, 10)


def test_it_trains_copies_compiles_and_wraps(student):
    student.train()
    student(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    student.zero_grad(set_to_none=True)
    student.eval()
    twin = copy.deepcopy(student)
    assert twin.plan == student.plan
    assert torch.equal(twin(X), student(X))
    twin.fc.bias.data.add_(1)
    assert not torch.equal(twin(X), student(X))
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), student(X))


def test_it_works_under_distributed_data_parallel(student, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(student.tapped().train())
        output, taps = wrapped(torch.randn(2, 3, 64, 64))
        (output.square().mean() + sum(t.mean() for t in taps.values())).backward()
        assert student.fc.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()
        student.zero_grad(set_to_none=True)
        student.eval()


def test_taps_are_outputs_of_a_graph_over_the_same_weights(teacher, student):
    tapped, theirs = student.tapped(), student.teacher_tapped(teacher, output=False)
    output, maps = tapped.eval()(X)
    nothing, teacher_maps = theirs(X)
    assert torch.equal(output, student.eval()(X))
    assert nothing is None
    assert set(maps) == set(teacher_maps) == {t.name for t in student.taps}
    for tap in student.taps:
        assert maps[tap.name].shape[1:] == (tap.channels, *tap.grid)
        assert teacher_maps[tap.name].shape[2:] == tap.grid
    assert {id(p) for p in tapped.parameters()} == {id(p) for p in student.parameters()}
    assert not any(n.target == "fc" for n in theirs.graph.nodes)  # no deeper than the taps need


def test_features_are_what_the_node_yields_even_if_it_is_overwritten_later(teacher, student):
    stage = student.stages[2]
    _, maps = student.teacher_tapped(teacher, {"pre": stage.pre_activation, "post": stage.output})(X)
    assert (maps["pre"] < 0).any()
    assert torch.equal(maps["post"], maps["pre"].relu())
    with pytest.raises(TapError, match="no graph node nowhere"):
        student.tapped({"x": "nowhere"})


def test_reentry_is_where_the_student_is_the_teacher_again(teacher, student):
    assert student.plan.factors == (4, 2, 2, 1, 1) or student.reentry is not None
    assert student.reentry in {s.output for s in student.stages} | {
        "layer2_0_relu_1",
        "layer3_0_relu_1",
        "layer4_0_relu_1",
    }
    unpooled = redistill.transform(teacher, X, factors=(1, 1, 1, 1, 1))
    assert unpooled.reentry is None
    assert torch.equal(unpooled(X), teacher(X))
    assert callable(find_reentry)


def test_a_saved_student_returns_the_same_outputs_to_the_bit(teacher, student, tmp_path):
    folder = student.save(tmp_path / "deep" / "student")
    loaded = redistill.load_student(folder, resnet18())
    assert torch.equal(loaded(X), student.eval()(X))
    assert (loaded.plan.factors, loaded.taps) == (student.plan.factors, student.taps)
    recipe = yaml.safe_load((folder / "student.yaml").read_text())
    assert recipe["plan"][0] == {"stage": "conv1", "grid": [32, 32], "factor": student.plan.factors[0]}
    assert sorted(p.name for p in folder.iterdir()) == ["student.yaml", "weights.safetensors"]
    assert list(folder.parent.iterdir()) == [folder]
    student.save(folder)  # a student is replaced by a student


def test_a_student_of_a_spec_loads_by_itself(tmp_path):
    spec = "redistill:mobilenet_v2_strided?strides=[1,1,2,2,2,1,2,1]&num_classes=10"
    student = redistill.transform(load_model(spec, "random"), X, "4x", model=spec).eval()
    loaded = redistill.load_student(student.save(tmp_path / "student"))
    assert torch.equal(loaded(X), student(X))


def test_damaged_folders_are_refused(student, tmp_path):
    folder = student.save(tmp_path / "student")
    with pytest.raises(StudentError, match=r"give it: load_student\(path, teacher=module\)"):
        redistill.load_student(folder)
    with pytest.raises(StudentError, match="was made of another architecture than VGG"):
        redistill.load_student(folder, torchvision.models.vgg11(weights=None, num_classes=10))
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(StudentError, match="its checksum is not the recipe's"):
        redistill.load_student(folder, resnet18())
    weights.unlink()
    with pytest.raises(StudentError, match=r"has no weights\.safetensors"):
        redistill.load_student(folder, resnet18())
    (folder / "student.yaml").write_text("format: [")
    with pytest.raises(StudentError, match="is not a student folder"):
        redistill.load_student(folder, resnet18())
    with pytest.raises(StudentError, match="is not a student folder"):
        redistill.load_student(tmp_path / "nowhere")


def test_a_folder_that_is_not_a_student_is_not_overwritten(student, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudentError, match="exists and is not a student"):
        student.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_infeasible_budget_says_what_can_be_had_and_what_stands_in_the_way(teacher):
    with pytest.raises(InfeasibleBudgetError) as refusal:
        redistill.transform(teacher, X, "1KiB")
    text = str(refusal.value)
    assert "no student of ResNet fits 1.000 KiB (deploy); the best that can be had is 4" in text
    assert "at factors 16,16" in text or "at factors" in text
    assert "x cannot be pooled, for it is the input" in text
    assert refusal.value.exit_code == 3


def test_taps_that_do_not_fit_are_left_out_with_a_note():
    model = load_model("redistill:ddpm_unet?width=16", "random")
    inputs = (torch.randn(1, 3, 32, 32), torch.tensor([1]))
    best = redistill.transform(model, inputs, "2x", taps="none")
    student = redistill.transform(model, inputs, best.plan.peak_bytes)
    assert student.plan.peak_bytes <= best.plan.peak_bytes


def test_wrong_wishes_are_named(teacher):
    with pytest.raises(BudgetError, match="cannot read the budget 'lots'"):
        redistill.transform(teacher, X, "lots")
    with pytest.raises(ModelError, match="no objective 'speed'; choose from macs, earliest, fidelity"):
        redistill.transform(teacher, X, "4x", objective="speed")
    with pytest.raises(ModelError, match="no convention 'real'"):
        redistill.transform(teacher, X, "4x", "real")
    with pytest.raises(PlanError, match=r"has 5 stages \(conv1 32x32, .* but 2 factors were given"):
        redistill.transform(teacher, X, factors=(4, 2))
    with pytest.raises(PlanError, match="no stride leads from conv1 at factor 8 to maxpool at factor 1"):
        redistill.transform(teacher, X, factors=(8, 1, 1, 1, 1))
    with pytest.raises(PlanError, match="whole numbers from 1 on"):
        redistill.transform(teacher, X, factors=(0, 1, 1, 1, 1))


def test_a_fixed_stage_keeps_its_factor():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.head = nn.Linear(4 * 32 * 32, 10)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    with pytest.raises(PlanError, match="stage conv must keep factor 1, for head"):
        redistill.transform(Fixed(), X, factors=(2,))


def test_no_public_name_is_also_a_package():
    packages = {module.name for module in pkgutil.iter_modules(redistill.__path__) if module.ispkg}
    assert not packages.intersection(redistill.__all__)


def test_importing_the_command_by_its_name_leaves_the_function():
    importlib.import_module("redistill.transform")
    assert redistill.transform is transform


def test_a_stage_whose_grid_is_out_of_reach_makes_do_with_a_smaller_one():
    class Unpadded(nn.Module):
        """Two strided branches without padding, joined: a pool cannot be padded as far as a convolution."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, stride=2)
            self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
            self.conv = nn.Conv2d(4, 4, 3, stride=2)
            self.pool = nn.MaxPool2d(3, stride=2)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            x = self.body(self.stem(x))
            return self.head(torch.cat([self.conv(x), self.pool(x)], 1).mean((2, 3)))

    student = redistill.transform(Unpadded(), X, factors=(4, 2), taps="none").eval()
    assert student(X).shape == (1, 10)
    assert redistill.profile(student, X, "graph").peak_bytes == measure(student, X)
