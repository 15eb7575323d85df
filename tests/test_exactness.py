"""Predicted peaks against the meter, with tolerance 0, and the figures that the literature can be compared with."""

from __future__ import annotations

import pytest
import torch

from redistill import measure, profile
from redistill.memory.lifetimes import MemoryProfile
from redistill.models import example_inputs, load_model
from redistill.models.paper import PAPER_PAIRS
from tests.graphs import trace

MIB = 2**20
NETWORKS = {
    "torchvision:resnet18": (3, 64, 64),
    "torchvision:mobilenet_v3_small": (3, 64, 64),
    "torchvision:densenet121": (3, 64, 64),
    "torchvision:shufflenet_v2_x1_0": (3, 64, 64),
    "torchvision:squeezenet1_1": (3, 64, 64),
    "torchvision:googlenet?init_weights=false&aux_logits=false": (3, 64, 64),
    "torchvision:convnext_tiny": (3, 64, 64),
    "torchvision:deeplabv3_mobilenet_v3_large": (3, 64, 64),
    "diffusers:UNet2DModel?sample_size=16&block_out_channels=[8,16]&layers_per_block=1&norm_num_groups=4"
    "&down_block_types=[DownBlock2D,AttnDownBlock2D]&up_block_types=[AttnUpBlock2D,UpBlock2D]": (3, 16, 16),
    "redistill:ddpm_unet?width=8&multipliers=[1,2,2]&attention_levels=[1]&blocks=1": (3, 16, 16),
}


def build(spec, shape, batch=1):
    if spec.startswith("diffusers:"):
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = load_model(spec, "random")
    return model, example_inputs(spec, model, [shape], batch)


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.partition("?")[0].partition(":")[2])
def test_graph_and_eager_predictions_are_what_the_meter_measures(spec):
    model, inputs = build(spec, NETWORKS[spec])
    module = trace(model, *inputs, check=False)
    assert profile(module, inputs, "graph").peak_bytes == measure(module, inputs)
    assert profile(model, inputs, "eager").peak_bytes == measure(model, inputs)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_predictions_hold_for_another_batch_and_an_odd_size(spec):
    model, inputs = build(spec, (3, 75, 61), batch=3)
    module = trace(model, *inputs, check=False)
    assert profile(module, inputs, "graph").peak_bytes == measure(module, inputs)
    assert profile(model, inputs, "eager").peak_bytes == measure(model, inputs)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_a_model_in_half_precision_needs_what_was_predicted_from_the_full_one(spec, name, dtype):
    model, inputs = build(spec, (3, 64, 64))
    module = trace(model, *inputs, check=False)
    graph = profile(module, inputs, "graph", name).peak_bytes
    eager = profile(model, inputs, "eager", name).peak_bytes
    halves = tuple(x.to(dtype) for x in inputs)
    assert measure(module.to(dtype), halves) == graph
    assert measure(model.to(dtype), halves) == eager


def peak_at_224(name: str) -> MemoryProfile:
    return profile(load_model(f"torchvision:{name}", "random"), torch.empty(1, 3, 224, 224))


def test_resnet18_peaks_at_its_max_pool():
    found = peak_at_224("resnet18")
    # conv1's 64 maps of 112x112 and the pool's 64 of 56x56, fp32
    assert found.peak_bytes == 4 * (64 * 112**2 + 64 * 56**2) == 4_014_080
    assert found.peak_node == "maxpool"
    assert f"{found.peak_bytes / MIB:.3f}" == "3.828"


def test_resnet50_peaks_at_its_first_shortcut():
    found = peak_at_224("resnet50")
    # the block's input, 64 maps of 56x56, its result and the projected shortcut, 256 each
    assert found.peak_bytes == 4 * 56**2 * (64 + 256 + 256) == 7_225_344
    assert found.live[0].shape == found.live[1].shape == (1, 256, 56, 56)
    assert f"{found.peak_bytes / MIB:.3f}" == "6.891"


def test_mobilenet_v2_peaks_at_its_first_strided_depthwise_convolution():
    found = peak_at_224("mobilenet_v2")
    # 96 maps of 112x112 in, 96 of 56x56 out
    assert found.peak_bytes == 4 * 96 * (112**2 + 56**2) == 6_021_120
    assert f"{found.peak_bytes / MIB:.3f}" == "5.742"


@pytest.mark.parametrize("name", PAPER_PAIRS)
def test_the_papers_teachers(name):
    pair = PAPER_PAIRS[name]
    model, inputs = build(pair.spec, pair.input_shape)
    found = profile(trace(model, *inputs, check=False), inputs)
    assert f"{found.peak_bytes / MIB:.3f}" == f"{pair.exact_teacher_mib:.3f}"
