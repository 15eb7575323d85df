"""Evidence on patches: the networks it is gathered on."""

from __future__ import annotations

import torch
from torch import nn

from redistill.evidence.patches import Plain, settle
from tests.graphs import image


def test_a_deep_network_with_random_weights_does_not_amplify_rounding() -> None:
    torch.manual_seed(0)
    layers = [(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(40)]
    model = nn.Sequential(*(part for layer in layers for part in layer)).eval()
    x = image(8, 1, 24)
    settle(model, (x,))
    plain = Plain(model, (x,))
    assert plain.rounding <= 2e-5
    (output,) = plain.outputs(torch.float64)
    assert output.std() > 0.1
