"""Fitting a student's weights to its teacher, against numpy's least squares and on whole networks."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

import redistill
from redistill.compiler.agreement import compare, run
from redistill.compiler.fitting.regression import Moments
from redistill.errors import FitError, ModelError
from redistill.models import load_model
from redistill.tracing.linear_calls import catch

LAYERS = {
    "3x3": nn.Conv2d(4, 8, 3, padding=1, bias=False),
    "3x3 stride 2, bias": nn.Conv2d(4, 8, 3, padding=1, stride=2),
    "1x1": nn.Conv2d(4, 8, 1, bias=False),
    "1x1 stride 2, bias": nn.Conv2d(4, 8, 1, stride=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "groups, bias": nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
    "even kernel, same": nn.Conv2d(4, 8, (2, 4), padding="same", dilation=(1, 2)),
    "valid": nn.Conv2d(4, 8, (1, 3), padding="valid"),
    "reflect": nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
    "1-D": nn.Conv1d(4, 8, 3, stride=2, padding=1),
    "3-D": nn.Conv3d(4, 2, (1, 2, 2), stride=(1, 2, 1), bias=False),
    "linear": nn.Linear(4, 8),
    "linear over a grid": nn.Linear(4, 8, bias=False),
}
SHAPES = {"1-D": (9, 4, 21), "3-D": (4, 4, 3, 6, 4), "linear": (50, 4), "linear over a grid": (4, 3, 5, 4)}


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def pictures(count):
    """Smooth random images, so that deep features differ from image to image."""
    return F.interpolate(3 * random(count, 3, 6, 6), 32, mode="bilinear")


def solved(layer, inputs, lacking, ridge, centred):
    """The call of a layer, and the weights fitted to its output plus what it lacks."""
    call = catch(layer.weight, lambda: layer(inputs))
    wanted = call.output() + lacking
    moments = Moments(ridge, centred)
    moments.add(call.patches(), wanted.reshape(len(wanted), call.groups, wanted.shape[1] // call.groups, -1))
    regression = moments.result()
    inherited = layer.weight.double().reshape(regression.moment.mT.shape).mT
    return call, regression, regression.solve(inherited).mT.reshape(layer.weight.shape).to(layer.weight)


def columns(layer, call):
    """The matrix whose least-squares weights a layer has, by numpy: the layer's output for each weight alone."""
    probe, found = copy.deepcopy(layer), []
    if probe.bias is not None:
        probe.bias.zero_()
    for index in range(layer.weight[0].numel()):
        probe.weight.zero_()
        probe.weight.flatten(1)[:, index] = 1
        found.append(catch(probe.weight, lambda: probe(call)).output())
    return torch.stack(found, -1).double().numpy()  # (B, C', ..., features)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_layer_becomes_the_least_squares_solution(name):
    layer = copy.deepcopy(LAYERS[name])
    inputs = random(*SHAPES.get(name, (5, 4, 6, 6))) + 0.5
    before = catch(layer.weight, lambda: layer(inputs)).output()
    lacking = random(*before.shape) + 1
    wanted, matrices = (before + lacking).double().numpy(), columns(layer, inputs)
    call, regression, weight = solved(layer, inputs, lacking, 1e-9, centred=layer.bias is not None)
    assert call.grid() == (len(before), *before.shape[2:])
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(regression.shift(weight.double().reshape(regression.moment.mT.shape).mT).flatten())
    found = catch(layer.weight, lambda: layer(inputs)).output()
    for channel in range(before.shape[1]):
        matrix = matrices[:, channel].reshape(-1, matrices.shape[-1])
        if layer.bias is not None:
            matrix = np.concatenate([matrix, np.ones((len(matrix), 1))], 1)
        expected = matrix @ np.linalg.lstsq(matrix, wanted[:, channel].ravel(), rcond=None)[0]
        np.testing.assert_allclose(found[:, channel].numpy().ravel(), expected, atol=2e-4)


@torch.no_grad()
def test_where_the_mean_is_of_no_matter_only_the_spread_is_explained():
    layer = nn.Conv2d(4, 3, 1, bias=False)
    _, _, weight = solved(layer, random(50, 4, 3, 3) + 2, torch.full((50, 3, 3, 3), 7.0), 1e-9, centred=True)
    torch.testing.assert_close(weight, layer.weight, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_strong_ridge_keeps_the_weights_given():
    layer = nn.Conv2d(4, 3, 3, bias=False)
    _, _, weight = solved(layer, random(8, 4, 6, 6), random(8, 3, 4, 4), 1e9, centred=False)
    torch.testing.assert_close(weight, layer.weight, atol=1e-6, rtol=0)


@torch.no_grad()
def test_weights_are_scaled_by_the_one_gain_that_explains_most():
    layer = nn.Linear(4, 3)
    inputs, lacking = random(50, 4), random(50, 3)
    call, regression, _ = solved(layer, inputs, lacking, 1e-2, centred=True)
    given, wanted = (value - value.mean(0) for value in (call.output(), call.output() + lacking))
    inherited = layer.weight.double().reshape(regression.moment.mT.shape).mT
    gain = (given * wanted).sum() / given.square().sum()
    torch.testing.assert_close(regression.scaled(inherited), inherited * gain, atol=1e-6, rtol=0, check_dtype=False)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 5)])
@torch.no_grad()
def test_outputs_get_back_the_variance_that_is_not_explained(layer):
    inputs = random(*((50, 4) if isinstance(layer, nn.Linear) else (8, 4, 6, 6)))
    lacking = random(*catch(layer.weight, lambda: layer(inputs)).output().shape) / 2
    call, regression, weight = solved(layer, inputs, lacking, 1e-2, centred=True)
    wanted = (call.output() + lacking).transpose(0, 1).flatten(1).var(1, correction=0)
    columned = weight.double().reshape(regression.moment.mT.shape).mT
    assert torch.all(regression.statistics(columned)[1].flatten() < wanted)
    restored = regression.statistics(regression.restored(columned))[1].flatten()
    torch.testing.assert_close(restored.float(), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_products_in_single_precision_are_exact_enough_or_not_used():
    inputs = random(40, 64, 14, 14).relu()
    aim = random(40, 8, 14, 14)
    for shift, ridge, single in ((0.0, 1e-2, True), (1e3, 1e-2, False), (0.0, 1e-8, False)):
        found = []
        for kind in (torch.float32, torch.float64):
            moments = Moments(ridge, centred=True)
            x = (inputs + shift).to(kind).reshape(40, 1, 64, -1)
            moments.add(x, aim.to(kind).reshape(40, 1, 8, -1))
            assert (moments.type == torch.float32) == (single and kind == torch.float32)
            found.append(moments.result().solve(torch.zeros(1, 64, 8, dtype=torch.float64)))
        assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()


def mobilenet():
    torch.manual_seed(0)
    model = load_model("redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.25", "random")
    with torch.no_grad():  # statistics of a network that has seen something
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        model.train()(pictures(64))
    return model.eval()


def resnet():
    torch.manual_seed(0)
    model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    return model.eval()


@pytest.mark.parametrize(("make", "factors"), [(mobilenet, (2, 2, 2, 1, 1)), (resnet, (2, 2, 1))])
def test_a_fitted_student_is_nearer_to_its_teacher_which_stays_as_it_was(make, factors):
    teacher, images = make(), pictures(64)
    kept = copy.deepcopy(teacher.state_dict())
    student = redistill.transform(teacher, images[:1], factors=factors, taps="auto")
    red = {key: value.clone() for key, value in student.named_parameters() if key.startswith("red.")}
    plain = copy.deepcopy(student).eval()
    drawn = torch.get_rng_state()
    report = redistill.fit(student, teacher, images, layers="all")
    assert torch.equal(torch.get_rng_state(), drawn)
    wanted = [path for path, module in teacher.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [fit.layer for fit in report.layers] == wanted
    assert all(fit.after <= fit.before + 1e-6 for fit in report.layers)
    assert str(report).startswith(f"fitted {len(wanted)} of {len(wanted)} layers; of their teacher's variance ")
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
    assert red
    assert all(torch.equal(value, student.get_parameter(key)) for key, value in red.items())
    with torch.no_grad():
        for seen, share in ((images, 0.75), (pictures(65), 0.9)):  # and images it was not fitted to
            aim, ours, inherited = (network.eval()(seen) for network in (teacher, student, plain))
            assert F.mse_loss(ours, aim) < share * F.mse_loss(inherited, aim)


def test_on_equal_grids_nothing_is_left_to_fit():
    teacher, images = resnet(), random(32, 3, 32, 32)
    student = redistill.transform(teacher, images[:1], factors=(1, 1, 1), taps="none")
    kept = copy.deepcopy(student.state_dict())
    report = redistill.fit(student, teacher, images, layers="all")
    assert (report.layers, report.left) == ((), {})
    assert len(report.unchanged) == report.total == 7
    assert all(torch.equal(value, kept[key]) for key, value in student.state_dict().items())


def test_layers_before_the_first_change_are_the_teachers():
    teacher, images = resnet(), random(32, 3, 32, 32)
    student = redistill.transform(teacher, images[:1], factors=(1, 2, 1), taps="none")
    report = redistill.fit(student, teacher, images, layers="all")
    assert report.unchanged == ("conv1",)
    assert report.layers[0].layer == "layer1.0.conv1"
    assert torch.equal(student.bn1.running_mean, teacher.bn1.running_mean)


def test_the_batchs_own_statistics_give_the_same_output():
    teacher, images = mobilenet(), pictures(64)
    student = redistill.transform(teacher, images[:1], factors=(4, 4, 4, 2, 1), taps="none")
    redistill.fit(student, teacher, images)
    with torch.no_grad():
        measured = student.eval()(images)
        for part in student.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.train()
        torch.testing.assert_close(student(images), measured, atol=1e-3, rtol=1e-3)


def test_modes_are_put_back_and_a_module_called_twice_keeps_its_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 4, 3, 2, 1)

        def forward(self, x):
            return self.last(self.shared(self.shared(self.stem(x)))).mean((2, 3))

    teacher = Twice().train()
    student = redistill.transform(teacher, random(1, 3, 32, 32), factors=(2, 1))
    report = redistill.fit(student, teacher, random(8, 3, 32, 32), layers="all")
    assert [fit.layer for fit in report.layers] == ["stem", "last"]
    assert report.left == {"shared": "its weight is used at several places"}
    assert torch.equal(student.shared.weight, teacher.shared.weight)
    assert teacher.training
    assert student.training


def test_a_denoiser_is_fitted_with_its_timesteps():
    torch.manual_seed(0)
    teacher = load_model("redistill:ddpm_unet?width=16", "random").eval()
    inputs = (random(6, 3, 16, 16), torch.arange(6))
    student = redistill.transform(teacher, tuple(value[:1] for value in inputs), factors=(2, 2, 2, 1))
    inherited = copy.deepcopy(student).eval()
    report = redistill.fit(student, teacher, *inputs, layers="all")
    assert report.layers[-1].layer.startswith("tail")  # whose pixels the student gives as channels
    with torch.no_grad():
        aim = teacher(*inputs)
        assert F.mse_loss(student.eval()(*inputs), aim) < F.mse_loss(inherited(*inputs), aim) / 2


def test_too_few_images_are_refused():
    teacher = resnet()
    student = redistill.transform(teacher, random(1, 3, 32, 32), factors=(2, 2, 1))
    with pytest.raises(ModelError, match="two images or more, not 1"):
        redistill.fit(student, teacher, random(1, 3, 32, 32))


def test_another_teacher_is_refused():
    torch.manual_seed(0)
    student = redistill.transform(resnet(), random(1, 3, 32, 32), factors=(2, 2, 1))
    wide = torchvision.models.wide_resnet50_2(num_classes=10)
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1 is 64x64x3x3 in the student and 128x64x1x1 in the teacher"):
        redistill.fit(student, wide, random(4, 3, 32, 32))


class PadsByItself(nn.Conv2d):
    """A convolution whose padding follows from its stride, as ports of other frameworks have it."""

    def forward(self, x):
        stride, kernel = self.stride[0], self.kernel_size[0]
        lacking = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = F.pad(x, 2 * (lacking // 2, lacking - lacking // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Plain(nn.Module):
    """A convolution that is a function with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(random(8, 8, 3, 3) / 8)

    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=1)


def test_what_a_convolution_computes_is_fitted_whatever_its_class():
    torch.manual_seed(0)
    teacher = nn.Sequential(
        PadsByItself(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Plain(), nn.ReLU(inplace=True),
        PadsByItself(8, 8, 5, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    images = pictures(48)
    student = redistill.transform(teacher, images[:1], factors=(2, 1), taps="none")
    inherited = copy.deepcopy(student)
    report = redistill.fit(student, teacher, images, layers="all")
    assert [fit.layer for fit in report.layers] == ["0", "3.kernel", "5", "7", "10"]
    with torch.no_grad():
        aim = teacher(images)
        assert F.mse_loss(student(images), aim) < F.mse_loss(inherited(images), aim) / 2


class PadsAtTheEnd(PadsByItself):
    """Built for one size: what it pads no longer follows from its stride."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, self.padding)


def test_what_is_cropped_is_not_fitted_and_the_norm_behind_is_part_of_the_layer():
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), PadsAtTheEnd(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    teacher[2].bias = None
    images = pictures(48)
    with torch.no_grad():
        teacher[3].momentum = None
        teacher.train()(images)
        teacher.eval()
    student = redistill.transform(teacher, images[:1], factors=(2, 1, 1), taps="none")
    assert any("getitem" in node.name for node in student.graph.nodes)
    inherited = copy.deepcopy(student)
    redistill.fit(student, teacher, images)
    with torch.no_grad():
        behind = {}
        for name, network in (("teacher", teacher), ("student", student)):
            network.get_submodule("3").register_forward_hook(lambda *a, name=name: behind.__setitem__(name, a[2]))
            network(images)
        assert behind["student"].shape == behind["teacher"].shape
        mean, wanted = (value.mean((0, 2, 3)) for value in (behind["student"], behind["teacher"]))
        torch.testing.assert_close(mean, wanted, atol=1e-4, rtol=1e-4)  # the norm makes up for what weights cannot
        variance, wanted = (value.var((0, 2, 3)) for value in (behind["student"], behind["teacher"]))
        torch.testing.assert_close(variance, wanted, atol=0, rtol=1e-3)
        aim = teacher(images)
        assert F.mse_loss(student(images), aim) < F.mse_loss(inherited(images), aim) / 2


def test_only_restored_layers_are_fitted_where_that_is_asked_for():
    teacher, images = resnet(), pictures(64)
    student = redistill.transform(teacher, images[:1], factors=(2, 2, 1), taps="none")
    inherited = {key: value.clone() for key, value in student.state_dict().items()}
    report = redistill.fit(student, teacher, images, layers="restored")
    restored = [path for path, _ in teacher.named_modules() if path.startswith("layer2.") and "conv" in path]
    assert {fit.layer for fit in report} == {*restored, "layer2.0.downsample.0", "fc"}
    assert report.kept == ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    assert report.total == 7
    assert "3 on coarser grids keep their weights" in str(report)
    for key, value in student.state_dict().items():
        assert torch.equal(value, inherited[key]) == (not key.startswith(("layer2.", "fc.")) or "batches" in key), key


def test_those_layers_are_fitted_that_agree_better_on_other_images():
    teacher, images = resnet(), pictures(64)
    student = redistill.transform(teacher, images[:1], factors=(2, 2, 1), taps="none")
    ranks = {}
    for layers in ("all", "restored"):
        part = copy.deepcopy(student)
        redistill.fit(part, teacher, images[0::2], layers=layers)
        ranks[layers] = compare(run(part, (images[1::2],)), run(teacher, (images[1::2],))).rank
    assert ranks["all"] != ranks["restored"]
    report = redistill.fit(student, teacher, images)
    assert bool(report.kept) == (ranks["restored"] > ranks["all"])


def test_little_memory_gives_the_same_weights():
    teacher, images = mobilenet(), pictures(40)
    student = redistill.transform(teacher, images[:1], factors=(4, 4, 4, 2, 1))
    students = [copy.deepcopy(student) for _ in range(3)]
    for student, memory in zip(students, (0, 600_000, 1 << 30), strict=True):
        redistill.fit(student, teacher, images, memory=memory)
    for other in students[:2]:
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, students[2].state_dict()[key], atol=1e-5, rtol=1e-5)


def test_in_place_operations_do_not_spoil_what_is_kept_or_given():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

        def forward(self, x):
            x = (x * 0.5).mul_(2.0)
            y = F.relu(self.stem(x), inplace=True)
            y += self.inner(y)
            return self.last(y.mul_(2.0).mean((2, 3)))

    teacher, images = Shortcut().eval(), pictures(20)
    given = images.clone()
    weights = []
    for memory in (0, 1 << 30):
        student = redistill.transform(teacher, images[:1].clone(), factors=(2,), taps="none")
        redistill.fit(student, teacher, images, memory=memory)
        weights.append(student.last.weight)
    assert torch.equal(images, given)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalise", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
def test_weights_that_are_normalised_are_fitted_and_stay_so(normalise):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    teacher = copy.deepcopy(plain)
    for index in (0, 2, 4):
        normalise(teacher[index])
    images = pictures(40)
    students = [
        redistill.transform(t.eval(), images[:1], factors=(2, 2, 1), taps="none").eval() for t in (plain, teacher)
    ]
    held = dict(students[1].named_parameters())
    found = [redistill.fit(s, t, images) for s, t in zip(students, (plain, teacher), strict=True)]
    for one, other in zip(*(report.layers for report in found), strict=True):
        assert one.layer == other.layer
        assert other.after == pytest.approx(one.after, rel=1e-3)
        assert other.after < other.before
    assert all(parameter is held[name] for name, parameter in students[1].named_parameters())
    torch.testing.assert_close(students[1](images), students[0](images), rtol=1e-3, atol=1e-3)


def test_a_student_without_a_layer_to_fit_is_refused():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, 2 * self.weight, stride=self.stride, padding=self.padding)

    teacher = nn.Sequential(Scaled(3, 4, 3, 2, 1), nn.ReLU(), Scaled(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1)).eval()
    student = redistill.transform(teacher, random(1, 3, 32, 32), factors=(2, 1), taps="none")
    with pytest.raises(FitError, match=r"none of the 2 layers can be fitted: 0 .*: its weight is computed"):
        redistill.fit(student, teacher, random(4, 3, 32, 32))
