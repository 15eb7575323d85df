"""How this library uses Accelerate: global batches split over processes, gradients accumulated in equal parts."""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from redistill.config.recipes import RecipeConfig
from redistill.config.settings import RunConfig
from redistill.errors import ConfigError
from redistill.trainers.task import Batch, Task

logger = logging.getLogger(__name__)

MALLOC_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}
"""Of glibc, with their numbers in malloc.h: no block is mapped on its own, none goes back to the system."""


def uses_cpu() -> bool:
    """Whether to train on the CPU: nothing faster is there, or Accelerate was told to.

    Accelerate finds the processes of a CPU run only if it is told that it is one.
    """
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") or not torch.accelerator.is_available()


def prefers_channels_last(precision: str) -> bool:
    """Whether networks train no slower with channels last: in float32 on a CPU, in half precision on a GPU.

    In half precision on a CPU it depends on the network: convolutions gain, group norms lose more.
    """
    return uses_cpu() == (precision == "no")


def processes() -> PartialState:
    """What is known of this process among the others."""
    return PartialState(cpu=uses_cpu())


def leave_processes() -> None:
    """Part from the other processes in an orderly way, at the end of a command."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def warn_of_missing_processes(trainer: str) -> None:
    """Say so where several CPU processes were asked of `accelerate launch`, which starts only one without MPI."""
    asked = "MASTER_ADDR" in os.environ and not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
    if asked and uses_cpu():
        logger.warning(
            "accelerate launch starts a single process on a CPU; for N of them: "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m redistill.trainers.%s ...",
            trainer,
        )


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, which else faults every page in anew: a tenth of its time."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for number, value in MALLOC_OPTIONS.values():
            libc.mallopt(number, value)


def make_accelerator(recipe: RecipeConfig, run: RunConfig, skips_parameters: bool) -> Accelerator:
    """Accelerate for a recipe; `skips_parameters` lets steps leave parameters without a gradient."""
    if run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    if uses_cpu():
        keep_freed_memory()
    AcceleratorState._reset_state()  # else a second run in this process could not choose another precision
    parallel = DistributedDataParallelKwargs(find_unused_parameters=skips_parameters)
    return Accelerator(
        cpu=uses_cpu(),
        mixed_precision=run.precision,
        gradient_accumulation_steps=recipe.accumulation,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=False),
        kwargs_handlers=[parallel],
        step_scheduler_with_optimizer=False,
    )


def make_loader(
    accelerator: Accelerator, dataset: Dataset[Batch], recipe: RecipeConfig, workers: int, sampler: Any = None
) -> Any:
    """Batches of one accumulated part, split over the processes and moved to their devices."""
    loader = DataLoader(
        dataset,
        batch_size=recipe.batch_size // recipe.accumulation,
        sampler=sampler,
        drop_last=sampler is not None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    return accelerator.prepare(loader)


def check_batches(accelerator: Accelerator, recipe: RecipeConfig, task: Task, samples: int) -> None:
    """Refuse batches that do not divide, that exceed the training set, or that starve a batch norm."""
    size, processes = recipe.batch_size, accelerator.num_processes
    part = size // (recipe.accumulation * processes)
    if part * recipe.accumulation * processes != size:
        raise ConfigError(
            f"recipe.batch_size={size} is not divisible by {processes} processes "
            f"x {recipe.accumulation} accumulated parts"
        )
    if part < 2 and any(isinstance(module, nn.BatchNorm2d) for module in task.modules()):
        raise ConfigError(
            f"recipe.batch_size={size} leaves 1 image to each step of a process, and batch norm needs 2 or more; "
            "raise it or lower recipe.accumulation"
        )
    if size > samples:
        raise ConfigError(f"recipe.batch_size={size} is more than the {samples} training images; lower it")


def evaluate(accelerator: Accelerator, task: Task, loader: Any) -> dict[str, float]:
    """The mean of every metric of the task over a loader's items, each item counted once."""
    training, sums, count = task.training, dict[str, float](), 0
    task.eval()
    for batch in loader:
        with torch.inference_mode(), accelerator.autocast():
            values = accelerator.gather_for_metrics(task.measure(batch))
        count += len(next(iter(values.values())))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    task.train(training)
    return {name: value / count for name, value in sums.items()}
