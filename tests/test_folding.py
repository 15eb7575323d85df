"""What inference folds away: batch norms into convolutions, computed weights into plain ones; and what stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import redistill
from redistill.export.exporting import export
from redistill.export.preparation import prepare
from redistill.tracing.capture import capture

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Dynamic(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias, self.stride, self.padding)


def down(convolution, norm=None):
    return nn.Sequential(convolution, norm or nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1))


def up(channels, groups, bias=False):
    transposed = nn.ConvTranspose2d(16, channels, 4, 2, 1, groups=groups, bias=bias)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), transposed, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 2, 3, 1, 1)
    )


def convolution():
    return nn.Conv2d(3, 16, 3, 2, 1)


NETWORKS = {
    "transposed": (lambda: up(16, 1), True),
    "transposed, depthwise": (lambda: up(16, 16), True),
    "transposed, in groups, with bias": (lambda: up(32, 2, bias=True), True),
    "no affine": (lambda: down(convolution(), nn.BatchNorm2d(16, affine=False)), True),
    "the batch's statistics": (lambda: down(convolution(), nn.BatchNorm2d(16, track_running_stats=False)), False),
    "old weight norm": (lambda: down(weight_norm(convolution())), True),
    "weight norm": (lambda: down(parametrizations.weight_norm(convolution())), True),
    "old spectral norm": (lambda: down(spectral_norm(convolution())), True),
    "standardised": (lambda: down(Standardised(3, 16, 3, 2, 1)), True),
    "weights made of the input": (lambda: down(Dynamic(3, 16, 3, 2, 1)), False),
}


def built(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_folded_computes_the_same(name):
    network = built(name)
    with torch.no_grad():
        expected = network(X)
        found = prepare(network, (X,))
        assert torch.allclose(found.graph_module(X), expected, atol=1e-5)
        assert torch.equal(network(X), expected)
    norms = any(isinstance(m, nn.BatchNorm2d) for m in found.graph_module.modules())
    assert norms is not NETWORKS[name][1]


@pytest.mark.parametrize("name", ["transposed, in groups, with bias", "old weight norm", "standardised"])
def test_what_is_folded_can_be_exported(name, tmp_path):
    assert export(prepare(built(name), (X,)), tmp_path / "network.pt2", "pt2").parity.relative_error < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_are_exact_whatever_makes_the_weights(name):
    network = built(name)
    graph = capture(network, X).graph_module
    assert redistill.profile(graph, X, "graph").peak_bytes == redistill.measure(graph, X)
    assert redistill.profile(network, X, "eager").peak_bytes == redistill.measure(network, X)


class Caches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.token, self.kept = nn.Conv2d(3, 8, 3, 2, 1), nn.Parameter(torch.zeros(1, 8, 1, 1)), {}

    def forward(self, x):
        x = self.stem(x)
        if x.shape not in self.kept:
            self.kept[x.shape] = torch.ones_like(x)
        return x + self.kept[x.shape] + nn.functional.relu(self.token)


def test_what_a_first_run_caches_is_counted_as_later_runs_have_it():
    network = Caches().eval()
    predicted = redistill.profile(network, X, "eager").peak_bytes
    assert predicted == redistill.measure(network, X) == redistill.measure(network, X)
    assert predicted == redistill.profile(network, X, "eager").peak_bytes
