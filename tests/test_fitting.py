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
from redistill.compiler.fitting import fit_convolution
from redistill.errors import ModelError
from redistill.models import load_model

LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1, "bias": False},
    "3x3 stride 2, bias": {"kernel_size": 3, "padding": 1, "stride": 2},
    "1x1": {"kernel_size": 1, "bias": False},
    "1x1 stride 2, bias": {"kernel_size": 1, "stride": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
    "groups, bias": {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
}


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def pictures(count):
    """Smooth random images, so that deep features differ from image to image."""
    return F.interpolate(3 * random(count, 3, 6, 6), 32, mode="bilinear")


def least_squares(layer, inputs, wanted, constant):
    """The convolution's outputs under numpy's least-squares weights, one output channel at a time."""
    found = np.empty(wanted.shape)
    padded = np.pad(inputs.numpy(), ((0, 0), (0, 0), (layer.padding[0],) * 2, (layer.padding[1],) * 2))
    members = layer.in_channels // layer.groups
    for channel in range(layer.out_channels):
        first = channel // (layer.out_channels // layer.groups) * members
        rows = [
            [
                padded[b, c, y * layer.stride[0] + i * layer.dilation[0], x * layer.stride[1] + j * layer.dilation[1]]
                for c in range(first, first + members)
                for i in range(layer.kernel_size[0])
                for j in range(layer.kernel_size[1])
            ]
            + [1.0] * constant
            for b in range(wanted.shape[0])
            for y in range(wanted.shape[2])
            for x in range(wanted.shape[3])
        ]
        matrix = np.array(rows, dtype=np.float64)
        solution = np.linalg.lstsq(matrix, wanted[:, channel].numpy().ravel().astype(np.float64), rcond=None)[0]
        found[:, channel] = (matrix @ solution).reshape(wanted[:, channel].shape)
    return torch.from_numpy(found).float()


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_convolution_becomes_the_least_squares_solution(name):
    layer = nn.Conv2d(4, 8 if name != "depthwise" else 4, **LAYERS[name])
    inputs = random(5, 4, 6, 6) + 0.5
    wanted = random(*layer(inputs).shape) + 1
    fit_convolution(layer, inputs, wanted - layer(inputs), ridge=1e-9, free_mean=False)
    expected = least_squares(layer, inputs, wanted, layer.bias is not None)
    torch.testing.assert_close(layer(inputs), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_where_the_mean_is_of_no_matter_only_the_spread_is_explained():
    layer = nn.Conv2d(4, 3, 1, bias=False)
    inputs = random(50, 4, 3, 3) + 2
    wanted = layer(inputs) + 7  # a shift no weights can give as well
    before = layer.weight.clone()
    fit_convolution(layer, inputs, wanted - layer(inputs), ridge=1e-9, free_mean=True)
    torch.testing.assert_close(layer.weight, before, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_strong_ridge_keeps_the_inherited_weights():
    layer, inputs = nn.Conv2d(4, 3, 3, bias=False), random(8, 4, 6, 6)
    before = layer.weight.clone()
    fit_convolution(layer, inputs, random(8, 3, 4, 4), ridge=1e9, free_mean=False)
    torch.testing.assert_close(layer.weight, before, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize(("make", "factors"), [(mobilenet, (4, 4, 4, 2, 1)), (resnet, (2, 2, 1))])
def test_a_fitted_student_is_nearer_to_its_teacher_which_stays_as_it_was(make, factors):
    teacher, images = make(), pictures(64)
    kept = copy.deepcopy(teacher.state_dict())
    student = redistill.transform(teacher, images[:1], factors=factors)
    red = {key: value.clone() for key, value in student.named_parameters() if key.startswith("red.")}
    plain = copy.deepcopy(student).eval()
    fits = redistill.fit(student, teacher, images)
    assert [fit.layer for fit in fits] == [p for p, m in teacher.named_modules() if isinstance(m, nn.Conv2d)]
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
    assert red
    assert all(torch.equal(value, student.get_parameter(key)) for key, value in red.items())
    with torch.no_grad():
        aim, ours, inherited = (network.eval()(images) for network in (teacher, student, plain))
    assert F.mse_loss(ours, aim) < F.mse_loss(inherited, aim) / 2


def test_on_equal_grids_nothing_is_left_to_fit():
    teacher, images = resnet(), random(32, 3, 32, 32)
    student = redistill.transform(teacher, images[:1], factors=(1, 1, 1), taps="none")
    assert all(fit.before < 1e-6 for fit in redistill.fit(student, teacher, images))


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
    fits = redistill.fit(student, teacher, random(8, 3, 32, 32))
    assert [fit.layer for fit in fits] == ["stem", "last"]
    assert torch.equal(student.shared.weight, teacher.shared.weight)
    assert teacher.training
    assert student.training


def test_a_denoiser_is_fitted_with_its_timesteps():
    torch.manual_seed(0)
    teacher = load_model("redistill:ddpm_unet?width=16", "random").eval()
    inputs = (random(6, 3, 16, 16), torch.arange(6))
    student = redistill.transform(teacher, tuple(value[:1] for value in inputs), factors=(2, 2, 2, 1))
    inherited = copy.deepcopy(student).eval()
    fits = redistill.fit(student, teacher, *inputs)
    assert fits[-1].layer.startswith("tail")  # whose pixels the student gives as channels
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
