"""The loop: it learns, it averages, it accumulates, it stops where it should."""

import json
import math
import os
import signal

import pytest
import torch
from small_task import data, equal, loop, network, recipe, weights

from redistill.config.recipes import OptimizerConfig, ScheduleConfig
from redistill.config.settings import RunConfig, TargetsConfig
from redistill.errors import CheckpointError, ConfigError, DivergenceError, InterruptedRunError
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.ema import MovingAverage
from redistill.trainers.schedule import factor


def test_it_learns_and_leaves_everything_to_be_read(tmp_path):
    made = loop(tmp_path, epochs=8)
    outcome = made.run()
    assert outcome.steps == 48
    assert outcome.test["top1"] > 90 > outcome.start["top1"]
    assert outcome.best_validation["top1"] >= outcome.validation["top1"]
    assert {path.name for path in tmp_path.iterdir()} >= {"log.jsonl", "curves.png", "best.safetensors", "checkpoints"}
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "task", "learning_rate", "images_per_second", "epoch"} <= entries[0].keys()
    assert [entry["step"] for entry in entries if entry["kind"] == "validation"] == list(range(6, 49, 6))


def test_two_runs_are_equal_to_the_bit(tmp_path):
    first, second = loop(tmp_path / "a"), loop(tmp_path / "b")
    assert first.run() == second.run()
    assert equal(weights(first), weights(second))


def test_without_epochs_a_network_is_measured_as_it_is(tmp_path):
    made = loop(tmp_path, epochs=0)
    before = weights(made)
    outcome = made.run()
    assert (outcome.steps, outcome.best_step) == (0, 0)
    assert outcome.validation == outcome.start
    assert equal(weights(made), before)
    assert loop(tmp_path, epochs=0).run(resume=True) == outcome


def test_another_seed_is_another_run(tmp_path):
    first, second = loop(tmp_path / "a"), loop(tmp_path / "b", run=RunConfig(seed=1))
    first.run(), second.run()
    assert not equal(weights(first), weights(second))


def test_workers_change_nothing(tmp_path):
    plain, spread = loop(tmp_path / "a", epochs=1), loop(tmp_path / "b", epochs=1)
    spread.workers = 2
    plain.run(), spread.run()
    assert equal(weights(plain), weights(spread))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    def frozen_norms(parts):
        made = loop(tmp_path / str(parts), dropout=0.0, accumulation=parts, epochs=2, ema=None)
        for module in made.task.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module
                module.eval()
                module.training = False
        made.run()
        return weights(made)

    whole, halves = frozen_norms(1), frozen_norms(2)
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step(tmp_path):
    made = loop(
        tmp_path,
        epochs=1,
        steps=1,
        clip_norm=1e-3,
        ema=None,
        optimizer=OptimizerConfig(learning_rate=1.0, weight_decay=0.0),
    )
    before = weights(made)
    made.run()
    parameters = dict(made.task.network.named_parameters())
    moved = math.sqrt(sum((parameters[name] - before[name]).square().sum().item() for name in parameters))
    assert 0 < moved <= 1.01e-3


def test_steps_may_end_within_an_epoch(tmp_path):
    made = loop(tmp_path, steps=8)
    assert made.run().steps == 8


@pytest.mark.parametrize("mixing", ["mixup", "cutmix", "either"])
def test_blended_images(tmp_path, mixing):
    made = loop(tmp_path, epochs=1, targets=TargetsConfig(mixing=mixing, label_smoothing=0.1))
    assert math.isfinite(made.run().validation["loss"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_place(tmp_path):
    class Poisoned(ClassifierTask):
        calls = 0

        def forward(self, batch, epoch=0.0, first_stage=False):
            losses = super().forward(batch, epoch, first_stage)
            self.calls += 1
            return {**losses, "kd/logits": losses["task"] * (math.nan if self.calls == 9 else 0.5)}

    made = loop(tmp_path, task=Poisoned(network(), data(), TargetsConfig()))
    with pytest.raises(DivergenceError, match=r"step 8: .*task=.*kd/logits=nan.*step-000000006; lower"):
        made.run()
    assert [path.name for path in made.checkpoints.all()] == ["step-000000006"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_asked_to_stop_saves_and_continues_to_the_same_weights(tmp_path, number):
    class Interrupted(ClassifierTask):
        calls = 0

        def forward(self, batch, epoch=0.0, first_stage=False):
            self.calls += 1
            if self.calls == 8:
                os.kill(os.getpid(), number)
            return super().forward(batch, epoch, first_stage)

    straight = loop(tmp_path / "straight")
    straight.run()
    with pytest.raises(InterruptedRunError, match=r"stopped at step 8.*--resume"):
        loop(tmp_path / "stopped", task=Interrupted(network(), data(), TargetsConfig())).run()
    continued = loop(tmp_path / "stopped")
    continued.run(resume=True)
    assert equal(weights(straight), weights(continued))


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    loop(tmp_path, epochs=1).run()
    with pytest.raises(CheckpointError, match="--resume"):
        loop(tmp_path, epochs=1).run()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 9, "accumulation": 2}, "not divisible"),
        ({"batch_size": 2, "accumulation": 2}, "batch norm needs 2 or more"),
        ({"batch_size": 64}, "more than the 48 training images"),
    ],
)
def test_batches_that_cannot_be(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        loop(tmp_path, **changes)


def test_the_average_is_of_weights_and_statistics_and_copies_counters():
    made = network()
    average = MovingAverage(made, decay=0.5)
    start = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        for value in made.state_dict().values():
            value += 1
    for _ in range(2):
        average.update(made)
    kept = (1 / 10) * (2 / 11)  # the decay of the first two updates
    for name, value in average.values.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, start[name] + (1 - kept))
        else:
            assert value == start[name] + 1
    with average.applied(made):
        assert equal(made.state_dict(), average.values)
    torch.testing.assert_close(made.state_dict()["0.weight"], start["0.weight"] + 1)


def test_schedules():
    def values(total=100, **changes):
        return [factor(ScheduleConfig(**changes), step, total, steps_per_epoch=10) for step in range(total)]

    assert values(name="constant") == [1.0] * 100
    stepped = values(name="step", milestones=(3, 6), gamma=0.1)
    assert (stepped[29], stepped[30], stepped[60]) == (1.0, 0.1, pytest.approx(0.01))
    cosine = values(name="cosine", warmup=1, floor=0.1)
    assert cosine[:2] == [pytest.approx(1 / 11), pytest.approx(2 / 11)]
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.55)
    cycle = values(name="one_cycle")
    assert max(cycle) == cycle[30] == 1.0
    assert cycle[0] == pytest.approx(0.04)
    assert cycle[-1] < 0.002


def test_the_recipe_refuses_nonsense():
    with pytest.raises(ConfigError, match=r"recipe\.epochs=-1"):
        recipe(epochs=-1)
    with pytest.raises(ConfigError, match="learning_rate"):
        OptimizerConfig(learning_rate=0)


def test_augmentation_is_a_function_of_epoch_and_image():
    images = data().train
    assert torch.equal(images[(2, 5)]["inputs"], images[(2, 5)]["inputs"])
    assert not torch.equal(images[(2, 5)]["inputs"], images[(3, 5)]["inputs"])


def test_a_warmup_may_be_told_in_steps():
    rise = [factor(ScheduleConfig(name="constant", warmup_steps=3), step, 100, 10) for step in range(5)]
    assert rise == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_checkpoints_may_be_rarer_than_epochs(tmp_path):
    made = loop(tmp_path, epochs=5, run=RunConfig(save_every=2, keep=9))
    made.run()
    batches = made.order.batches
    assert [path.name for path in made.checkpoints.all()] == [f"step-{n * batches:09d}" for n in (2, 4, 5)]
