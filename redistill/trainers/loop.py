"""The training loop on Accelerate, the same for every task and any number of processes.

All randomness is a function of the seed and the step, the learning rate is a function of the step, and a checkpoint
holds the rest. So a run that was stopped anywhere continues to the same weights as one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from redistill.config.recipes import RecipeConfig
from redistill.config.settings import RunConfig
from redistill.data.datasets import EpochOrder
from redistill.errors import CheckpointError, DivergenceError, InterruptedRunError
from redistill.internal import seeding
from redistill.internal.files import write_atomically
from redistill.trainers.acceleration import check_batches, evaluate, make_accelerator, make_loader
from redistill.trainers.batchnorm import share_statistics
from redistill.trainers.checkpoint import LOG, Checkpoints, save_tensors
from redistill.trainers.ema import MovingAverage
from redistill.trainers.folder import RunFolder
from redistill.trainers.interruption import Interruption
from redistill.trainers.monitor import LossMonitor, NotFiniteError
from redistill.trainers.optimizers import make_optimizer, set_learning_rate
from redistill.trainers.progress import Facts, Metrics, Outcome, Progress
from redistill.trainers.record import Record, draw_curves, render_grid
from redistill.trainers.schedule import factor
from redistill.trainers.state import (
    Tree,
    load_module_state,
    load_optimizer_state,
    module_state,
    optimizer_state,
    read_state,
)
from redistill.trainers.task import Batch, Task

logger = logging.getLogger(__name__)


class Loop:
    """Trains a task by a recipe, into a folder. The task's network holds the last weights afterwards.

    Args:
        task: what is trained, and its data.
        recipe: how.
        run: the machine's side.
        folder: where everything goes.
        workers: processes that load data.
        facts: what the numbers depend on; a run is not continued with others.
    """

    def __init__(
        self,
        task: Task,
        recipe: RecipeConfig,
        run: RunConfig,
        folder: Path | RunFolder,
        workers: int = 0,
        facts: Facts | None = None,
    ) -> None:
        self.task, self.recipe, self.run_config, self.workers = task, recipe, run, workers
        self.folder = RunFolder.at(folder)
        self.facts = facts or Facts()
        self.accelerator = make_accelerator(recipe, run, task.skips_parameters)
        self.order = EpochOrder(len(task.train_set), recipe.batch_size, run.seed)
        check_batches(self.accelerator, recipe, task, self.order.samples)
        self.first_stage = task.first_stage_epochs * self.order.batches
        self.total = self.first_stage + (recipe.steps or recipe.epochs * self.order.batches)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.checkpoints = Checkpoints(self.folder.checkpoints, run.keep)
        self.monitor = LossMonitor(self.accelerator)
        self.loaders: dict[int, Any] = {}

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the end, or continue from the newest whole checkpoint; then measure on validation and test set."""
        self._set_up()
        self._restore(resume)
        self.progress.start = self.progress.start or self.measure(self.task.validation_set)
        shown: dict[str, Any] = {"initial": self.progress.step, "disable": None if self._is_main else True}
        with Interruption() as interruption, tqdm(total=self.total, unit="step", **shown) as bar:
            while self.progress.step < self.total:
                self._train_epoch(interruption, bar)
                self._end_epoch()
        if not self.total:
            self._end_epoch()
        return self._finish()

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # ---- before -------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        run, task = self.run_config, self.task
        self.folder.path.mkdir(parents=True, exist_ok=True)
        if run.sync_batchnorm and self.accelerator.num_processes > 1:
            share_statistics(task)
        task.prepare(self.accelerator.device, channels_last=bool(run.channels_last), compiled=run.compile)
        self.average = MovingAverage(task.network, self.recipe.ema) if self.recipe.ema else None
        self.optimizer: Any = make_optimizer(task, self.recipe.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(task, self.optimizer)
        self.loader = make_loader(self.accelerator, task.train_set, self.recipe, self.workers, self.order)
        self.record = Record(self.folder, writes=self._is_main)

    def _restore(self, resume: bool) -> None:
        if not resume:
            if self.checkpoints.all():
                raise CheckpointError(
                    f"{self.folder.path} already holds a run; continue it with --resume or set run.folder"
                )
            return
        newest = self.checkpoints.newest()
        if newest is None:
            logger.warning("%s holds no whole checkpoint; starting from the beginning", self.folder.path)
        else:
            self._load_state(read_state(newest), newest)
            logger.info("continuing from %s", newest)
        self.record.restore("" if newest is None else (newest / LOG).read_text(encoding="utf-8"))
        self.accelerator.wait_for_everyone()
        if self._is_main:
            self.checkpoints.discard_after(newest)
        if self.progress.step:
            self._end_epoch()

    def _state(self) -> Tree:
        """All that a run needs to go on; every process calls this, after the losses are settled."""
        average, scaler = self.average, self.accelerator.scaler
        return {
            "facts": self.facts.to_plain(),
            "progress": self.progress.state_dict(),
            "task": module_state(self.task),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if average is None else average.state_dict(),
            "best": self.best,
            "losses": self.monitor.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def _load_state(self, state: Tree, place: Path) -> None:
        self.facts.check(state["facts"], place)
        self.progress.load_state_dict(state["progress"])
        load_module_state(self.task, state["task"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best = state["best"]
        if self.best is not None and self._is_main:
            save_tensors(self.best, self.folder.best)
        self.monitor.load_state_dict(state["losses"])
        torch.set_rng_state(state["generator"])

    # ---- training -----------------------------------------------------------------------------------------------

    def _train_epoch(self, interruption: Interruption, bar: Any) -> None:
        """The rest of the present epoch."""
        epoch, done = divmod(self.progress.step, self.order.batches)
        self.order.go_to(epoch, done, self.total - epoch * self.order.batches)
        self.task.train()
        self.monitor.restart()
        for part, batch in enumerate(self.loader):
            with self.accelerator.accumulate(self.model):
                self._train_on(batch, part)
            if self.accelerator.sync_gradients:
                self._complete_step(interruption)
                bar.update()

    def _end_epoch(self) -> None:
        """Validate where it is due, and save; does nothing if that was done already before the run was stopped."""
        step, epoch = self.progress.step, self.progress.step // self.order.batches
        whole = step % self.order.batches == 0 or step >= self.total
        if not whole or self.progress.ended == step:
            return
        self._log()
        if step >= self.total or epoch % self.run_config.validate_every == 0:
            self._validate()
        self.progress.ended = step
        if step >= self.total or epoch % (self.run_config.save_every or 1) == 0:
            self._checkpoint()

    def _train_on(self, batch: Batch, part: int) -> None:
        """Forward, backward and, where the batch is complete, the optimizer's step."""
        step, recipe = self.progress.step, self.recipe
        first_stage = step < self.first_stage
        since = step if first_stage else step - self.first_stage
        self._set_learning_rate(since, first_stage)
        part %= recipe.accumulation
        torch.manual_seed(seeding.derive(self.run_config.seed, "step", step, part, self.accelerator.process_index))
        losses = self.model(batch, epoch=since / self.order.batches, first_stage=first_stage)
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        if self.accelerator.sync_gradients and recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.task.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.monitor.add(step, losses, recipe.batch_size // recipe.accumulation)

    def _set_learning_rate(self, step: int, first_stage: bool) -> None:
        share = factor(self.recipe.schedule, step, self.total - self.first_stage, self.order.batches)
        self.progress.learning_rate = self.recipe.optimizer.learning_rate * (1.0 if first_stage else share)
        set_learning_rate(self.optimizer, self.progress.learning_rate)

    def _complete_step(self, interruption: Interruption) -> None:
        """Count the step, average, log, save and stop where it is due."""
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.task.network)
        step, run = self.progress.step, self.run_config
        logs = step % run.log_every == 0
        if logs:
            self._log()
        if run.checkpoint_every and step % run.checkpoint_every == 0:
            self._checkpoint()
        if self._must_stop(interruption, logs):
            raise InterruptedRunError(f"stopped at step {step}; saved as {self._checkpoint()}; continue with --resume")

    def _must_stop(self, interruption: Interruption, logs: bool) -> bool:
        """Whether any process was asked to stop; several processes agree on it when they log."""
        if self.accelerator.num_processes == 1 or not logs:
            return interruption.wanted and self.accelerator.num_processes == 1
        wish = torch.tensor(float(interruption.wanted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish) > 0)

    def _log(self) -> None:
        with self._finite():
            averages = self.monitor.averages()
        if averages:
            place = {
                "epoch": self.progress.step / self.order.batches,
                "learning_rate": self.progress.learning_rate,
            }
            self.record.write("train", self.progress.step, {**averages, **place})

    def _checkpoint(self) -> Path:
        """Save the run, if it is sound; the log's lines do not depend on when that is."""
        with self._finite():
            self.monitor.settle()
        for name, value in self.task.named_parameters():
            if not torch.isfinite(value).all():
                raise self._diverged(self.progress.step, f"{name} holds NaN or infinity")
        state, step = self._state(), self.progress.step
        saved = self.checkpoints.path(step)
        if self._is_main:
            self.checkpoints.save(step, state, self.record.read())
        self.accelerator.wait_for_everyone()
        return saved

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Losses that are not finite end the run, naming the step."""
        try:
            yield
        except NotFiniteError as error:
            raise self._diverged(error.step, str(error)) from error

    def _diverged(self, step: int, what: str) -> DivergenceError:
        return DivergenceError(
            f"step {step}: the loss is no longer finite: {what}; the last good checkpoint is "
            f"{self.checkpoints.newest() or 'none'}; lower recipe.optimizer.learning_rate or set recipe.clip_norm"
        )

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        with self._averaged():
            metrics = self.measure(self.task.validation_set)
            if self.progress.takes_as_best(metrics[self.task.metric], higher=self.task.higher_is_better):
                self._save_best()
            self._draw(self.folder.samples(self.progress.step))
        self.record.write("validation", self.progress.step, metrics)

    def measure(self, dataset: Any, task: Task | None = None) -> Metrics:
        """The mean of every metric over a set, of the task that is trained or of another one."""
        if id(dataset) not in self.loaders:
            self.loaders[id(dataset)] = make_loader(self.accelerator, dataset, self.recipe, self.workers)
        return evaluate(self.accelerator, task or self.task, self.loaders[id(dataset)])

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied(self.task.network)

    def _save_best(self) -> None:
        self.best = {name: value.detach().cpu().clone() for name, value in self.task.network.state_dict().items()}
        if self._is_main:
            save_tensors(self.best, self.folder.best)

    def _draw(self, path: Path) -> None:
        """Save a grid of what the network makes, if it makes images."""
        if self._is_main:
            with self.accelerator.autocast():
                images = self.task.picture()
            if images is not None:
                write_atomically(path, render_grid(images))

    def _finish(self) -> Outcome:
        """Measure the last weights, which stay in the network, and the best validated ones where they are others."""
        network, task = self.task.network, self.task
        if self.average is not None:
            network.load_state_dict(self.average.values)
        last = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.accelerator.wait_for_everyone()
        metrics = best = self.measure(task.validation_set), self.measure(task.test_set)
        if self.best is not None and self.progress.best_step < self.progress.step and not self.run_config.brief:
            network.load_state_dict(self.best)
            best = self.measure(task.validation_set), self.measure(task.test_set)
            network.load_state_dict(last)
        self.record.write("test", self.progress.step, metrics[1])
        self._draw(self.folder.samples())
        if self._is_main:
            write_atomically(self.folder.curves, draw_curves(self.record.entries()))
        self.accelerator.wait_for_everyone()
        return Outcome(self.progress.step, self.progress.best_step, self.progress.start, *metrics, *best)
