"""Scaffold RED: blocks in the student's way while it trains, none in what is deployed."""

import copy

import pytest
import torch
from torch.nn import functional as F

import redistill
from redistill.distillation import Distiller, create
from redistill.distillation.methods.scaffold import LowRankTarget, ScaffoldBlock
from redistill.errors import ConfigError
from tests.trainers.small_networks import SmallResNet


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return SmallResNet().eval()


@pytest.fixture
def student(teacher):
    return redistill.transform(copy.deepcopy(teacher), torch.zeros(1, 3, 32, 32), factors=[2, 2, 1, 1])


def distiller(student, teacher, **options):
    torch.manual_seed(1)
    return Distiller(student, teacher, {"scaffold": options}, example=torch.randn(8, 3, 32, 32))


def test_the_pooled_stages_meet_the_teachers_of_equal_grid(student, teacher):
    distil = distiller(student, teacher)
    _, losses = distil(torch.randn(4, 3, 32, 32))
    assert sorted(losses) == ["scaffold/conv1", "scaffold/layer1"]
    view = distil.student_view(torch.randn(2, 3, 32, 32))
    theirs = distil.teacher_views["teacher"](torch.randn(2, 3, 32, 32))
    assert [value.shape[-1] for value in view.coarse.values()] == [value.shape[-1] for value in theirs.coarse.values()]


def test_the_strength_falls_to_nothing_and_the_student_is_bare(student, teacher):
    distil, images = distiller(student, teacher, epochs=2.0), torch.randn(4, 3, 32, 32)
    distil.eval()
    strengths, gaps = [], []
    for epoch in (0.0, 1.0, 1.5, 2.0, 3.0):
        output, _ = distil(images, epoch=epoch)
        strengths.append(next(iter(distil.distillation.methods["scaffold"].blocks.values())).strength)
        gaps.append((output - student(images)).abs().max().item())
    assert strengths[:2] == [1.0, pytest.approx(0.5)]
    assert strengths == sorted(strengths, reverse=True)
    assert gaps[0] > gaps[2] > 0
    assert gaps[3:] == [0.0, 0.0]
    assert not any("red" in name or "route" in name for name in student.state_dict())
    assert distil.distillation.extra_parameters()["scaffold"] > 0


def test_only_the_loss_sees_blocks_that_are_not_routed(student, teacher):
    distil, images = distiller(student, teacher, routed=False).eval(), torch.randn(4, 3, 32, 32)
    output, losses = distil(images)
    assert torch.equal(output, student(images))
    losses["scaffold/layer1"].backward()
    assert student.get_parameter("conv1.weight").grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"target": "maps", "rank": 4}, {"distance": "mse"}])
def test_student_and_blocks_learn(student, teacher, options):
    distil = distiller(student, teacher, **options).train()
    output, losses = distil(torch.randn(8, 3, 32, 32), epoch=1.0)
    (output.logsumexp(1).mean() + sum(losses.values())).backward()
    missing = [name for name, value in distil.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


def test_low_rank_targets_are_white(teacher):
    maps = torch.randn(6, 5, 4, 4) * torch.tensor([5.0, 1, 1, 1, 3])[:, None, None] + 2
    target = LowRankTarget(maps, 2)
    points = target(maps).transpose(0, 1).flatten(1)
    torch.testing.assert_close(points.mean(dim=1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(points @ points.T / points.shape[1], torch.eye(2), atol=1e-3, rtol=0)


def test_the_block_is_a_blend():
    block, x = ScaffoldBlock(3).eval(), torch.randn(2, 3, 4, 4)
    block.strength = 0.25
    torch.testing.assert_close(block(x), 0.75 * x + 0.25 * block.block(x))
    assert F.mse_loss(block.block(x), x) < 0.1 * x.square().mean()  # near the identity from the start


def test_what_cannot_be_is_refused(teacher):
    same = redistill.transform(copy.deepcopy(teacher), torch.zeros(1, 3, 32, 32), factors=[1, 1, 1, 1])
    with pytest.raises(ConfigError, match="pools no stage"):
        distiller(same, teacher)
    with pytest.raises(ConfigError, match=r"epochs=0\S* must be above 0"):
        create("scaffold", {"epochs": 0})
