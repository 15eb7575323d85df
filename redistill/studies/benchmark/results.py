"""What a benchmark found, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from redistill.report.data import versions
from redistill.studies.benchmark.timing import PairedTiming, Timing


@dataclass(frozen=True)
class DevicePeak:
    """What a GPU's allocator gave out at most during one run, without the weights, and what the meter counted then."""

    allocated: int
    metered: int

    @property
    def workspace(self) -> int:
        """What kernels took beside the activations (cuDNN, cuBLAS), and the allocator's rounding to 512 bytes."""
        return self.allocated - self.metered


@dataclass(frozen=True)
class Network:
    """Teacher or student, at batch 1: peaks by convention and as measured, work, size; all sizes in bytes.

    ``measured`` is the meter's figure of the module as it runs; ``arena`` what ExecuTorch's memory plan sets aside,
    None where it was not asked or could not be had; ``macs`` are counted by ``torch.utils.flop_counter``.
    """

    peaks: Mapping[str, int]
    measured: int
    macs: int
    parameters: int
    file_bytes: int
    arena: int | None = None
    device: DevicePeak | None = None


@dataclass(frozen=True)
class RedShare:
    """The RED blocks' part of the student, from 0 to 1; of memory, the most alive while one of them runs (deploy)."""

    parameters: float
    macs: float
    weight_bytes: float
    peak: float


@dataclass(frozen=True)
class Benchmark:
    """A teacher beside its student.

    ``steps`` is how many runs make one image (a denoiser's), None for a network that is run once; ``skipped`` says of
    each backend that was left out why.
    """

    title: str
    input: str
    weights: str
    machine: str
    teacher: Network
    student: Network
    red: RedShare
    timings: tuple[PairedTiming, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    steps: int | None = None


def to_json(result: Benchmark) -> dict[str, Any]:
    """The whole benchmark as plain values; sizes in bytes, times in milliseconds."""
    plain = asdict(result)
    plain["timings"] = [_timing(t, result.steps) for t in result.timings]
    for role, network in (("teacher", result.teacher), ("student", result.student)):
        if network.device is not None:
            plain[role]["device"]["workspace"] = network.device.workspace
    return {**plain, "versions": versions()}


def _timing(timing: PairedTiming, steps: int | None) -> dict[str, Any]:
    return {
        "backend": timing.backend,
        "batch": timing.batch,
        "threads": timing.threads,
        "pairs": len(timing.teacher.milliseconds),
        "deviation": timing.deviation,
        "teacher": _summary(timing.teacher, timing.batch, steps),
        "student": _summary(timing.student, timing.batch, steps),
        "ratio": timing.ratio,
        "quartiles": list(timing.quartiles),
        "steady": timing.is_steady,
    }


def _summary(timing: Timing, batch: int, steps: int | None) -> dict[str, Any]:
    per_image = {} if steps is None else {"seconds_per_image": seconds_per_image(timing, batch, steps)}
    figures = {"median": timing.median, "p95": timing.p95, "minimum": timing.minimum}
    return {**figures, **per_image, "milliseconds": list(timing.milliseconds)}


def seconds_per_image(timing: Timing, batch: int, steps: int) -> float:
    """The time of all the runs that make one image, shared among the images of a batch."""
    return timing.median * steps / batch / 1e3
