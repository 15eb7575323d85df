"""The error by timestep against what is known of networks that need no training."""

import pytest
import torch

from redistill.diffusion import NoiseSchedule, training_target
from redistill.studies.evaluation.generation import TrainedDenoiser
from redistill.studies.evaluation.timesteps import error_by_timestep, plot_errors

SCHEDULE = NoiseSchedule()


class Oracle(torch.nn.Module):
    """Knows the images, hence the noise, and is off by a known share of it."""

    def __init__(self, images, kind, share):
        super().__init__()
        self.images, self.kind, self.share = images, kind, share

    def forward(self, noisy, timestep):
        scales = SCHEDULE.scales(timestep, noisy)
        noise = (noisy - scales[0] * self.images) / scales[1] * (1 - self.share)
        images = (noisy - scales[1] * noise) / scales[0]
        return training_target(self.kind, images, noise, scales)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v"])
def test_the_error_is_that_of_the_noise_whatever_is_predicted(kind, tmp_path):
    images = torch.rand(20, 1, 8, 8, dtype=torch.float64) * 2 - 1
    curves = {}
    for share in (0.0, 0.1):
        denoiser = TrainedDenoiser(Oracle(images, kind, share), SCHEDULE, kind, (1, 8, 8), "")
        errors = error_by_timestep(denoiser, images, points=4)
        assert [point.timestep for point in errors] == [0, 333, 666, 999]
        for point in errors:
            assert point.error == pytest.approx(share**2, rel=0.2, abs=1e-9)
        curves[str(share)] = errors
    plot_errors(curves, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000


def test_predicting_nothing_costs_one_and_the_noise_is_the_same_each_time():
    images = torch.zeros(50, 1, 8, 8)
    nothing = TrainedDenoiser(torch.nn.Module(), SCHEDULE, "epsilon", (1, 8, 8), "")
    nothing.network.forward = lambda noisy, timestep: torch.zeros_like(noisy)
    errors = error_by_timestep(nothing, images, points=2)
    assert all(point.error == pytest.approx(1, rel=0.1) for point in errors)
    assert error_by_timestep(nothing, images, points=2) == errors
    assert error_by_timestep(nothing, images, points=2, seed=1) != errors
