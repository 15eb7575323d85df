"""What users would do otherwise at the same peak: a smaller image, a narrower network."""

import pytest
import torch
from torch import nn

import redistill
from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.errors import InfeasibleBudgetError
from redistill.models import load_model
from redistill.models.cifar_resnet import ZeroPaddedShortcut
from redistill.trainers.baselines import SmallerInput, prune, resize
from redistill.trainers.classifier import train
from redistill.trainers.costs import measure_costs

EXAMPLE = (torch.zeros(1, 3, 32, 32),)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return load_model("redistill:cifar_resnet?depth=8", "random")


def peak(network):
    return redistill.profile(network, EXAMPLE).peak_bytes


@pytest.mark.parametrize("budget", ["2x", "4x", "40%"])
def test_the_largest_image_that_fits(network, budget):
    made = resize(network, EXAMPLE, budget, "deploy")
    share = {"2x": 0.5, "4x": 0.25, "40%": 0.4}[budget]
    assert peak(made) <= share * peak(network) < peak(SmallerInput(network, made.side + 1))
    assert torch.equal(made.network.conv1.weight, network.conv1.weight)
    assert made(EXAMPLE[0]).shape == (1, 10)


@pytest.mark.parametrize("spec", ["redistill:cifar_resnet?depth=8", "redistill:mobilenet_v2_strided?width_mult=0.25"])
def test_the_widest_network_that_fits(spec):
    pytest.importorskip("torch_pruning")
    network = load_model(spec, "random")
    made = prune(network, EXAMPLE, "4x", "deploy")
    assert 0.2 * peak(network) < peak(made) <= 0.25 * peak(network)
    assert made(EXAMPLE[0]).shape == network(EXAMPLE[0]).shape
    assert sum(p.numel() for p in made.parameters()) < 0.5 * sum(p.numel() for p in network.parameters())


def test_budgets_below_the_image_itself_are_refused(network):
    with pytest.raises(InfeasibleBudgetError, match="a smaller image cannot reach"):
        resize(network, EXAMPLE, "50x", "deploy")


def test_a_shortcut_as_a_convolution_gives_the_same():
    shortcut, x = ZeroPaddedShortcut(4, 10, 2), torch.randn(2, 4, 6, 6)
    assert torch.equal(shortcut(x), shortcut.as_convolution()(x))


def test_costs(network):
    costs = measure_costs(network, EXAMPLE, "deploy")
    assert costs["peak_bytes"] == peak(network)
    assert costs["metered_bytes"] >= costs["peak_bytes"]
    assert costs["parameters"] == sum(p.numel() for p in network.parameters())
    assert costs["latency_ms"] > 0
    assert costs["macs"] == redistill.profile(network, EXAMPLE).macs

    class Opaque(nn.Module):
        def forward(self, x):
            return x * float(x.sum() > 0)

    assert measure_costs(Opaque(), EXAMPLE, "deploy").keys() >= {"metered_bytes", "latency_ms"}


SHORT = [
    "data.train_limit=64", "data.test_limit=40", "recipe.epochs=0", "recipe.batch_size=16", "run.brief=true",
    "student.fit=32",
    "teacher.recipe=null", "teacher.weights=random", "distillation.methods=none",
    "teacher.model=redistill:cifar_resnet?depth=8&width_mult=0.5",
]  # fmt: skip


def run(tmp_path, *settings):
    config = load(ClassifierConfig, "digits/smoke.yaml", [*SHORT, *settings])
    return train(config, tmp_path / "-".join(settings).replace("/", "_"))


def test_patches_change_nothing_and_need_less(tmp_path):
    whole = run(tmp_path, "student.budget=null")
    patched = run(tmp_path, "student.budget=1.2x", "student.lever=patches", "student.start=teacher")
    assert patched["last"]["test"]["loss"] == pytest.approx(whole["last"]["test"]["loss"], rel=1e-5)
    assert patched["costs"]["peak_bytes"] * 1.2 <= whole["costs"]["peak_bytes"]


def test_fidelity_chooses_on_training_images(tmp_path):
    summary = run(tmp_path, "student.budget=3x", "student.objective=fidelity")
    assert summary["costs"]["peak_bytes"] > 0


@pytest.mark.parametrize("lever", ["resize", "prune"])
def test_baselines_are_trained_like_any_student(tmp_path, lever):
    if lever == "prune":
        pytest.importorskip("torch_pruning")
    summary = run(tmp_path, "student.budget=2x", f"student.lever={lever}", "distillation.methods=kd", "recipe.epochs=1")
    assert summary["steps"] == 4
    assert (
        tmp_path / f"student.budget=2x-student.lever={lever}-distillation.methods=kd-recipe.epochs=1" / "student"
    ).is_dir()
