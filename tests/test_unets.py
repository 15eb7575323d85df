"""UNets of every make through the compiler: budgets, shapes, tails, weights, training and saving."""

import pytest
import torch
from torch.nn import functional as F

import redistill
from redistill.models import example_inputs, load_model

OURS = "redistill:ddpm_unet?width=8&multipliers=[1,2]&blocks=1"
SMALL = "sample_size=16&block_out_channels=[8,16]&layers_per_block=1&norm_num_groups=4"
UNETS = {
    "ours": OURS,
    "ours with classes": f"{OURS}&num_classes=10&attention_levels=[1]",
    "convolutional up and down": (
        f"diffusers:UNet2DModel?{SMALL}&down_block_types=[DownBlock2D,AttnDownBlock2D]"
        "&up_block_types=[AttnUpBlock2D,UpBlock2D]&downsample_padding=0"
    ),
    "residual up and down": (
        f"diffusers:UNet2DModel?{SMALL}&down_block_types=[ResnetDownsampleBlock2D,AttnDownBlock2D]"
        "&up_block_types=[AttnUpBlock2D,ResnetUpsampleBlock2D]"
    ),
    "text-conditional": (
        f"diffusers:UNet2DConditionModel?{SMALL}&cross_attention_dim=8&attention_head_dim=4"
        "&down_block_types=[CrossAttnDownBlock2D,DownBlock2D]&up_block_types=[UpBlock2D,CrossAttnUpBlock2D]"
    ),
}


def build(name):
    if UNETS[name].startswith("diffusers"):
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = load_model(UNETS[name], "random")
    shapes = None if "diffusers" in UNETS[name] else [(3, 16, 16)]
    return model, example_inputs(UNETS[name], model, shapes, batch=2)


@pytest.mark.parametrize(("name", "budget"), zip(UNETS, ("4x", "2x", "8x", "2x", "4x"), strict=True))
def test_a_unet_fits_keeps_its_output_trains_and_is_saved(name, budget, tmp_path):
    model, inputs = build(name)
    student = redistill.transform(model, inputs, budget).eval()
    assert student.profile.peak_bytes <= student.teacher_profile.peak_bytes / int(budget[0])
    output = student(*inputs)
    assert output.shape == inputs[0].shape
    output.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    loaded = redistill.load_student(student.save(tmp_path / "student"), model).eval()
    assert torch.equal(loaded(*inputs), output)


@pytest.mark.parametrize("name", ["ours", "convolutional up and down"])
def test_the_tail_begins_as_nearest_upsampling_of_the_teachers_and_can_learn_detail(name):
    model, inputs = build(name)
    student = redistill.transform(model, inputs, factors=(2, 1), taps="none").eval()
    (shuffle,) = [node for node in student.graph.nodes if node.name.endswith("_upsampling")]
    path = str(shuffle.all_input_nodes[0].target)
    tail, origin = student.get_submodule(path), model.get_submodule(path)
    assert tail.weight.shape[0] == 4 * origin.weight.shape[0]
    x = torch.randn(1, origin.in_channels, 8, 8)
    with torch.no_grad():
        enlarged = student.get_submodule(str(shuffle.target))(tail(x))
        torch.testing.assert_close(enlarged, F.interpolate(origin(x), scale_factor=2.0))
    blocks = F.unfold(student(*inputs)[:, :1], 2, stride=2)
    torch.testing.assert_close(blocks, blocks[:, :1].expand_as(blocks))
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    student(*inputs).mul(torch.randn(inputs[0].shape)).sum().backward()
    optimizer.step()
    blocks = F.unfold(student(*inputs)[:, :1], 2, stride=2)
    assert blocks.std(dim=1).mean() > 0.01


@pytest.mark.parametrize("name", ["ours with classes", "residual up and down"])
def test_measured_peaks_are_those_predicted(name):
    model, inputs = build(name)
    student = redistill.transform(model, inputs, factors=(2, 1)).eval()
    assert redistill.measure(student, inputs) == redistill.profile(student, inputs, "graph").peak_bytes


def test_factors_that_do_not_divide_an_image_are_refused_in_one_line():
    model = load_model("redistill:ddpm_unet?width=8&multipliers=[1,2,2]&blocks=1", "random")
    with pytest.raises(redistill.RedistillError, match="choose pooling factors that divide its grids") as refusal:
        redistill.transform(model, (torch.randn(1, 3, 28, 28), torch.tensor([1])), factors=(2, 2, 2))
    assert "\n" not in str(refusal.value)
