"""The input's own factor: a smaller image as a plan like any other."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import redistill
from redistill.commands.transform import main
from redistill.errors import InfeasibleBudgetError, PlanError
from redistill.models import load_model


def network(stride=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [64, 33])
def test_resize_alone_is_the_same_network_on_a_smaller_image(stride, side):
    teacher, images = network(stride), torch.randn(2, 3, side, side)
    student = redistill.transform(teacher, images, "2x", levers="resize", taps="none").eval()
    (factor,) = set(student.plan.factors)
    assert factor > 1
    assert student.plan.peak_bytes <= student.plan.limit
    with torch.no_grad():
        smaller = F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)
        torch.testing.assert_close(student(images), teacher(smaller))


def test_the_promised_peak_is_the_measured_one():
    teacher, images = network(), torch.randn(1, 3, 64, 64)
    for levers in ("resize", "resize,pool"):
        student = redistill.transform(teacher, images, "2x", "graph", levers=levers, taps="none").eval()
        assert redistill.measure(student, images) == student.plan.peak_bytes
        assert student.teacher_profile.peak_bytes == redistill.profile(teacher, images, "graph").peak_bytes


def test_an_image_that_keeps_its_size_is_not_pooled():
    teacher, images = network(), torch.randn(1, 3, 64, 64)
    student = redistill.transform(teacher, images, factors=(1, 2, 2, 1), levers=("pool", "resize"), taps="none").eval()
    plain = redistill.transform(teacher, images, factors=(2, 2, 1), taps="none").eval()
    assert not any(isinstance(module, nn.AvgPool2d) for module in student.modules())
    assert student.plan.peak_bytes == plain.plan.peak_bytes
    with torch.no_grad():
        torch.testing.assert_close(student(images), plain(images))


def test_image_and_stages_pool_together_with_taps_beside_the_teachers_grids(tmp_path):
    torch.manual_seed(0)
    teacher = torchvision.models.mobilenet_v2(width_mult=0.5).eval()
    images = torch.randn(2, 3, 128, 128)
    student = redistill.transform(teacher, images, "4x", levers=("resize", "pool"), taps="auto")
    assert student.plan.factors[0] > 1
    assert student.plan.factors[-1] == 1
    assert student.reentry is not None
    assert student.taps
    assert not any("reduced_input" in tap.student + tap.teacher for tap in student.taps)
    ours, theirs = student.tapped()(images)[1], student.teacher_tapped(teacher)(images)[1]
    assert {k: v.shape[2:] for k, v in ours.items()} == {k: v.shape[2:] for k, v in theirs.items()}
    student.save(tmp_path / "student")
    loaded = redistill.load_student(tmp_path / "student", teacher=copy.deepcopy(teacher))
    assert loaded.provenance.request.levers == ("resize", "pool")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), student.eval()(images))


def test_patches_go_before_a_smaller_image():
    teacher, images = network(), torch.randn(1, 3, 64, 64)
    lossless = redistill.transform(teacher, images, "1.5x", levers="patches,resize", taps="none").eval()
    assert set(lossless.plan.factors) == {1}
    student = redistill.transform(
        teacher, images, "3.2x", levers="patches,resize", taps="none", max_extra_macs=0.0
    ).eval()
    assert student.plan.peak_bytes <= student.plan.limit
    with torch.no_grad():
        torch.testing.assert_close(lossless(images), teacher(images))


def test_outputs_keep_their_size():
    denoiser = load_model("redistill:ddpm_unet?width=16", "random").eval()
    inputs = (torch.randn(1, 3, 32, 32), torch.tensor([5]))
    student = redistill.transform(denoiser, inputs, "2x", levers="resize", taps="none").eval()
    assert student(*inputs).shape == inputs[0].shape
    segmenter = nn.ModuleDict({"first": nn.Conv2d(3, 32, 3, 2, 1), "last": nn.Conv2d(32, 4, 1)})

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = segmenter

        def forward(self, x):
            scores = self.parts["last"](F.relu(self.parts["first"](x)))
            return F.interpolate(scores, size=x.shape[-2:], mode="bilinear")

    student = redistill.transform(Segmenter().eval(), inputs[0], factors=(2, 2), levers="resize", taps="none")
    assert student(inputs[0]).shape == (1, 4, 32, 32)


def test_fidelity_compares_smaller_images_with_coarser_grids():
    teacher, images = network(), torch.randn(12, 3, 64, 64)
    options = {"objective": "fidelity", "calibration": images, "taps": "none"}
    alone = redistill.transform(teacher, images[:1], "2x", levers="resize", **options)
    assert len(set(alone.plan.factors)) == 1
    both = redistill.transform(teacher, images[:1], "2x", levers="resize,pool", **options)
    note = next(note for note in both.provenance.notes if note.startswith("fidelity: "))
    assert "2,2,2,2 (" in note
    report = redistill.fit(alone, teacher, images, layers="all")
    assert len(report.layers) == 4


def test_what_cannot_be_is_said(capsys):
    with pytest.raises(PlanError, match="unknown lever 'rezise'; did you mean 'resize'"):
        redistill.transform(network(), torch.randn(1, 3, 64, 64), "2x", levers="rezise")
    with pytest.raises(InfeasibleBudgetError, match="no smaller image brings Sequential within"):
        redistill.transform(network(), torch.randn(1, 3, 64, 64), "16x", levers="resize")
    model = ["--model", "redistill:mobilenet_v2_strided?num_classes=4&width_mult=0.25", "--input", "3x64x64"]
    assert main([*model, "--levers", "resize", "--budget", "2x", "--taps", "none"]) == 0
    assert "reduced_input" in capsys.readouterr().out
