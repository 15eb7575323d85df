"""Schedules, predictions and samplers: against their equations, and against diffusers' where it is installed."""

import math

import pytest
import torch

from redistill.diffusion import (
    NoiseSchedule,
    sample,
    sample_with_scheduler,
    scheduler_options,
    to_noise,
    to_sample,
    training_target,
)
from redistill.diffusion.sampling import choose_timesteps
from redistill.errors import ConfigError, ModelError

KINDS = ("epsilon", "sample", "v")
DIFFUSERS_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


def denoiser(x, t, labels=None):
    """Smooth, unlike any schedule, and a function of everything that is given in."""
    shift = 0.0 if labels is None else 0.1 * labels[:, None, None, None]
    return (0.7 * x + torch.cos(t[:, None, None, None] / 100)).sin() + shift


def initial_noise(n=3):
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_follows_its_equation(name):
    schedule = NoiseSchedule(name, steps=1000)
    if name == "linear":
        product = math.prod(1 - (1e-4 + i * (0.02 - 1e-4) / 999) for i in range(501))
    else:
        product = math.cos((501 / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert schedule.alpha_bar(500) == pytest.approx(product, rel=1e-12)
    assert schedule.alpha_bar(-1) == 1.0
    assert schedule.alpha_bar(999) < 1e-4


def test_noisy_images_have_the_variance_of_the_schedule():
    schedule = NoiseSchedule()
    noise = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = schedule.add_noise(torch.ones_like(noise), noise, torch.full((64,), 300))
    assert noisy.mean().item() == pytest.approx(schedule.alpha_bar(300) ** 0.5, abs=0.01)
    assert noisy.var().item() == pytest.approx(1 - schedule.alpha_bar(300), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_convert_into_each_other(kind):
    schedule, noise = NoiseSchedule("cosine"), initial_noise()
    images, timestep = initial_noise().flip(0).tanh(), torch.tensor([3, 500, 900])
    scales = schedule.scales(timestep, images)
    noisy = schedule.add_noise(images, noise, timestep)
    target = training_target(kind, images, noise, scales)
    torch.testing.assert_close(to_sample(kind, target, noisy, scales), images)
    torch.testing.assert_close(to_noise(kind, target, noisy, scales), noise)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("variance", "steps"), [("large", 100), ("small", 100), ("small", 20)])
def test_ancestral_sampling_equals_diffusers(name, kind, variance, steps):
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule(name, steps=100)
    theirs = diffusers.DDPMScheduler(
        **scheduler_options(schedule), variance_type=f"fixed_{variance}", prediction_type=DIFFUSERS_NAMES[kind]
    )
    theirs.alphas_cumprod = schedule.alpha_bars  # theirs are float32
    expected = run(theirs, steps)
    options = {"sampler": "ddpm", "steps": steps, "prediction": kind, "variance": variance, "spacing": "leading"}
    images = sample(denoiser, schedule, initial_noise(), generator=torch.Generator().manual_seed(1), **options)
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("eta", "spacing"), [(0.0, "leading"), (0.0, "trailing"), (0.6, "leading"), (1.0, "trailing")])
def test_implicit_sampling_equals_diffusers(name, kind, eta, spacing):
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule(name, steps=100)
    theirs = diffusers.DDIMScheduler(
        **scheduler_options(schedule), prediction_type=DIFFUSERS_NAMES[kind], timestep_spacing=spacing
    )
    theirs.alphas_cumprod = schedule.alpha_bars
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    expected = run(theirs, 20, eta=eta, use_clipped_model_output=True)
    options = {"steps": 20, "prediction": kind, "eta": eta, "spacing": spacing}
    images = sample(denoiser, schedule, initial_noise(), generator=torch.Generator().manual_seed(1), **options)
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-6)


def run(scheduler, steps, **options):
    """Sample by a scheduler of diffusers."""
    scheduler.set_timesteps(steps)
    images, generator = initial_noise(), torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        predicted = denoiser(images, timestep.expand(len(images)))
        images = scheduler.step(predicted, timestep, images, generator=generator, **options).prev_sample
    return images


def test_other_samplers_come_from_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule, truth = NoiseSchedule(), torch.full((2, 1, 4, 4), 0.3)

    def exact(x, t):
        return to_noise("sample", truth, x, schedule.scales(t, x))

    solver = diffusers.DPMSolverMultistepScheduler(**scheduler_options(schedule))
    images = sample_with_scheduler(exact, solver, torch.randn(truth.shape), steps=10)
    torch.testing.assert_close(images, truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{"sampler": "ddim"}, {"sampler": "ddpm"}, {"sampler": "ddim", "eta": 1.0}])
def test_a_denoiser_that_knows_the_image_samples_it_exactly(options):
    schedule, truth = NoiseSchedule("cosine"), initial_noise().tanh()

    def exact(x, t):
        return to_noise("sample", truth, x, schedule.scales(t, x))

    images = sample(exact, schedule, initial_noise(), steps=7, **options)
    torch.testing.assert_close(images, truth)


def test_ddim_with_eta_one_is_ddpm_with_the_small_variance():
    first, second = (torch.Generator().manual_seed(2) for _ in range(2))
    schedule = NoiseSchedule()
    ddim = sample(denoiser, schedule, initial_noise(), steps=30, eta=1.0, generator=first)
    ddpm = sample(denoiser, schedule, initial_noise(), sampler="ddpm", steps=30, variance="small", generator=second)
    torch.testing.assert_close(ddim, ddpm)


def test_guidance_moves_away_from_the_prediction_without_a_label():
    asked = []

    def model(x, t, labels=None):
        asked.append(None if labels is None else labels.tolist())
        return torch.zeros_like(x) if labels is None else torch.ones_like(x) * labels[:, None, None, None]

    labels, schedule = torch.tensor([1, 2, 3]), NoiseSchedule()
    options = {"steps": 1, "labels": labels, "clip": False, "prediction": "sample"}
    plain = sample(model, schedule, initial_noise(), **options)
    assert asked == [[1, 2, 3]]
    guided = sample(model, schedule, initial_noise(), guidance=2.0, **options)
    torch.testing.assert_close(guided, 3 * plain)
    sample(model, schedule, initial_noise(), guidance=2.0, null_label=9, **options)
    assert asked[-1] == [9, 9, 9]


def test_timesteps_hold_the_ends_that_their_spacing_says():
    assert choose_timesteps(1000, 1000) == list(range(999, -1, -1))
    assert choose_timesteps(1000, 5) == [999, 749, 500, 250, 0]
    assert choose_timesteps(1000, 5, "leading") == [800, 600, 400, 200, 0]
    assert choose_timesteps(1000, 5, "trailing") == [999, 799, 599, 399, 199]


def test_the_model_is_evaluated_and_left_as_it_was():
    class Model(torch.nn.Module):
        def forward(self, x, t):
            assert not self.training
            return x

    model = Model().train()
    sample(model, NoiseSchedule(), initial_noise(), steps=2)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2000}, "give 1 to 1000"),
        ({"sampler": "heun"}, "not one of ddpm, ddim"),
        ({"prediction": "noise"}, "not one of epsilon, sample, v"),
        ({"eta": 2.0}, "between 0 and 1"),
        ({"sampler": "ddpm", "variance": "learned"}, "not one of large, small"),
        ({"spacing": "even"}, "not one of linspace, leading, trailing"),
        ({"guidance": 1.0}, "needs labels"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        sample(denoiser, NoiseSchedule(), initial_noise(), **options)


def test_a_model_of_another_output_is_refused():
    with pytest.raises(ModelError, match=r"gives 3x2x2x2 for an image of 3x2x4x4"):
        sample(lambda x, t: x[..., ::2, ::2], NoiseSchedule(), initial_noise())
    with pytest.raises(ModelError, match="gives dict for"):
        sample(lambda x, t: {"sample": x}, NoiseSchedule(), initial_noise())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "sigmoid"}, "linear, cosine"), ({"steps": 0}, "1 or more"), ({"first_beta": 0.5}, "rise between")],
)
def test_bad_schedules_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(**options)
