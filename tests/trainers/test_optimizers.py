"""Optimizers: the fused step is the plain one, and parameters may get their first gradient late."""

import copy

import pytest
import torch
from torch import nn

from redistill.config.recipes import OptimizerConfig
from redistill.trainers.optimizers import make_optimizer


def train(network, optimizer, steps=4):
    """Steps of which the first two leave the last layer without a gradient, as a first stage does."""
    torch.manual_seed(0)
    for step in range(steps):
        value = network[0](torch.randn(5, 3))
        (value if step < 2 else network[1](value)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_the_plain_one_also_where_a_gradient_comes_late(name):
    config = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1, decay_norms=True)
    ours = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plain = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    train(ours, make_optimizer(ours, config))
    if name == "adamw":
        reference = torch.optim.AdamW(
            plain.parameters(), lr=0.01, betas=tuple(config.betas), weight_decay=0.1, fused=False
        )
    else:
        reference = torch.optim.SGD(
            plain.parameters(), lr=0.01, momentum=config.momentum, nesterov=config.nesterov, weight_decay=0.1
        )
    train(plain, reference)
    for (key, value), expected in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, before[key])
