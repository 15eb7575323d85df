"""Students of public libraries' models, in the places that those libraries have for models of their own."""

import pytest
import torch

import redistill


def unet(diffusers):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def draw(diffusers, denoiser):
    pipeline = diffusers.DDIMPipeline(unet=denoiser, scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    chance = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipeline(num_inference_steps=2, output_type="np", generator=chance).images)


def test_a_student_draws_in_a_diffusers_pipeline(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    teacher, example = unet(diffusers), (torch.randn(2, 3, 16, 16), torch.tensor([3, 7]))
    unpooled = redistill.transform(teacher, example, factors=(1, 1), taps="none").eval()
    assert torch.equal(draw(diffusers, unpooled), draw(diffusers, teacher))
    student = redistill.transform(teacher, example, budget="1.5x").eval()
    loaded = redistill.load_student(student.save(tmp_path / "student"), teacher).eval()
    assert draw(diffusers, student).shape == (1, 16, 16, 3)
    assert torch.equal(draw(diffusers, student), draw(diffusers, loaded))


def test_a_student_of_a_diffusers_model_has_its_manners():
    diffusers = pytest.importorskip("diffusers")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 3])
    student = redistill.transform(unet(diffusers), (x, t), budget="1.5x").eval()
    assert (student.config.sample_size, student.dtype, student.device.type) == (16, torch.float32, "cpu")
    whole = student(x, t)
    assert type(whole).__name__ == "UNet2DOutput"
    assert torch.equal(student(x, t, return_dict=False)[0], whole.sample)
    assert torch.equal(student(sample=x, timestep=3).sample, whole.sample)  # as the schedulers give it
    assert torch.equal(torch.compile(student, backend="eager", fullgraph=True)(x, t).sample, whole.sample)


def test_a_student_of_a_transformers_classifier_returns_its_output_class():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=3
    )
    teacher = transformers.ResNetForImageClassification(config).eval()
    example = {"pixel_values": torch.randn(1, 3, 64, 64)}
    student = redistill.transform(teacher, example, budget="1.5x").eval()
    output = student(**example)
    assert type(output) is type(teacher(**example))
    assert output.logits.shape == (1, 3)
    assert student.config.num_labels == 3
    with pytest.raises(redistill.RedistillError, match="labels was not given"):
        student(**example, labels=torch.tensor([1]))
