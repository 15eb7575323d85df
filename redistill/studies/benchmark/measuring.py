"""The benchmark itself: teacher and student in one process, every figure computed or measured."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from tqdm import tqdm

from redistill.errors import RedistillError
from redistill.internal.text import format_shapes
from redistill.student import record_of
from redistill.studies.benchmark.backends import BACKENDS, prepare
from redistill.studies.benchmark.networks import describe_network, plan_arena, predict, share_of_red
from redistill.studies.benchmark.pair import Inputs, Pair
from redistill.studies.benchmark.results import Benchmark
from redistill.studies.benchmark.timing import PairedTiming, time_pair


@dataclass(frozen=True)
class Options:
    """What is timed, and how.

    Attributes:
        backends: names of ``BACKENDS``; None for all that can be had, each other one left out with its reason.
        batches: batch sizes to time; memory and work are of batch 1.
        repeats: timed calls of each network, on each backend at each batch size.
        seconds: after which no further pair of calls is made, once there are five.
        threads: of the CPU; as many as PyTorch has by default.
        device: ``cpu`` or ``cuda``.
        steps: runs that make one image of a denoiser.
    """

    backends: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 50
    seconds: float = 10.0
    threads: int | None = None
    device: str = "cpu"
    steps: int | None = None

    def check(self) -> None:
        """Refuse before the work what cannot be had.

        Raises:
            RedistillError: an unknown backend, one asked for by name and not installed, a device that is not there.
        """
        for name in self.backends or ():
            if name not in BACKENDS:
                raise RedistillError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
            if BACKENDS[name].missing:
                raise RedistillError(f"{name} needs {BACKENDS[name].missing}; pip install 'redistill[export]'")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RedistillError("there is no CUDA device here; use --device cpu")


def benchmark(pair: Pair, options: Options | None = None, *, progress: bool = False) -> Benchmark:
    """Compare a student with its teacher; both are left as they are. ``progress`` shows a bar.

    Raises:
        RedistillError: the device is not there, a backend that is named is not installed, or none of those named can
            run the networks.
    """
    options = options or Options()
    options.check()
    inputs = pair.inputs()
    models: tuple[nn.Module, ...] = (pair.teacher, pair.student)
    profiles = [predict(model, inputs) for model in models]
    with _threads(options.threads):
        timings, skipped = _time_all(pair, options, progress)
        arenas, reason = _plan_arenas(models, inputs, options, skipped)
        teacher, student = (
            describe_network(model, inputs, found, options.device, arena)
            for model, found, arena in zip(models, profiles, arenas, strict=True)
        )
    return Benchmark(
        title=pair.model,
        input=format_shapes(inputs),
        weights=pair.weights,
        machine=describe_machine(options.device),
        teacher=teacher,
        student=student,
        red=share_of_red(pair.student, profiles[1]["deploy"]),
        timings=timings,
        skipped=skipped,
        notes=(*_type_note(pair), *reason, *find_disturbances(timings)),
        steps=options.steps,
    )


def time_backend(
    name: str, models: Sequence[nn.Module], inputs: Sequence[torch.Tensor], repeats: int, seconds: float
) -> PairedTiming:
    """The latencies of two networks on one backend.

    Raises:
        RedistillError: the backend cannot run one of them.
    """
    given, threads = tuple(inputs), torch.get_num_threads()
    (teacher, off), (student, off_too) = (prepare(name, model, given, threads) for model in models)
    with torch.no_grad():
        timings = time_pair(teacher, student, repeats, seconds)
    return PairedTiming(name, len(given[0]), threads, *timings, max(off, off_too))


def _time_all(pair: Pair, options: Options, progress: bool) -> tuple[tuple[PairedTiming, ...], dict[str, str]]:
    """Every backend at every batch size, and why some were left out."""
    device = options.device
    models = [copy.deepcopy(m).to(device) if device != "cpu" else m for m in (pair.teacher, pair.student)]
    timings, skipped = [], {}
    work = list(product(options.backends or BACKENDS, options.batches))
    for name, batch in (bar := tqdm(work, unit="run", leave=False, disable=not progress)):
        bar.set_description(f"{name}, batch {batch}")
        if name in skipped:
            continue
        try:
            inputs = [x.to(device) for x in pair.inputs(batch)]
            timings.append(time_backend(name, models, inputs, options.repeats, options.seconds))
        except RedistillError as error:
            skipped[name] = str(error)
    if options.backends and not timings:
        raise RedistillError(next(iter(skipped.values())))
    return tuple(timings), skipped


def _plan_arenas(
    models: Sequence[nn.Module], inputs: Inputs, options: Options, skipped: Mapping[str, str]
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """ExecuTorch's arenas where it is among the backends, and why there are none where that fails."""
    none = (None,) * len(models)
    if "executorch" in skipped or "executorch" not in (options.backends or BACKENDS):
        return none, ()
    try:
        return tuple(plan_arena(model, inputs) for model in models), ()
    except RedistillError as error:
        return none, (f"no arena: {error}",)


def _type_note(pair: Pair) -> tuple[str, ...]:
    dtype = record_of(pair.student).provenance.request.dtype
    return (f"the plan counts activations as {dtype}; here they are counted as they run",) if dtype else ()


def describe_machine(device: str) -> str:
    """The processor that was timed."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"


def find_disturbances(timings: Iterable[PairedTiming]) -> tuple[str, ...]:
    """What casts doubt on latencies: other work on the machine, ratios that do not agree."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    notes = [f"other work was running: load {load:.1f} on {processors} processors"] if load > 1.5 * processors else []
    unsteady = [f"{BACKENDS[t.backend].title} at batch {t.batch}" for t in timings if not t.is_steady]
    if unsteady:
        notes.append(f"not steady, measure again on a calmer machine: {', '.join(unsteady)}")
    return tuple(notes)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
