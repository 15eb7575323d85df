"""Latency of two networks side by side: called in turn, so that what disturbs the machine disturbs both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WARM_UP = 3
FEWEST = 5  # pairs of calls, however long they take
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the calls of one network, in the order in which they were made."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the calls took longer."""
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        """One call of twenty took longer."""
        return float(np.quantile(self.milliseconds, 0.95))

    @property
    def minimum(self) -> float:
        """The fastest call: the least disturbed."""
        return min(self.milliseconds)


@dataclass(frozen=True)
class PairedTiming:
    """The latencies of teacher and student on one backend at one batch size; call ``i`` of both was made in turn.

    ``deviation`` is the largest difference of the backend's outputs from eager's, relative to the largest output.
    """

    backend: str
    batch: int
    threads: int
    teacher: Timing
    student: Timing
    deviation: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times faster the student is: the ratio of the medians."""
        return self.teacher.median / self.student.median

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the ratios of neighbouring calls."""
        ratios = np.divide(self.teacher.milliseconds, self.student.milliseconds)
        low, high = np.quantile(ratios, (0.25, 0.75))
        return float(low), float(high)

    @property
    def is_steady(self) -> bool:
        """Whether the two ways to compare agree: where not, other work disturbed the calls."""
        low, high = self.quartiles
        return low <= self.ratio <= high


def time_pair(teacher: Call, student: Call, repeats: int, seconds: float) -> tuple[Timing, Timing]:
    """Call both in turn after a warm-up: ``repeats`` times, or fewer if ``seconds`` are over, but five at least."""
    for _ in range(WARM_UP):
        teacher(), student()
    taken: list[tuple[float, float]] = []
    stop = time.perf_counter() + seconds
    while len(taken) < repeats and (len(taken) < FEWEST or time.perf_counter() < stop):
        taken.append((_milliseconds(teacher), _milliseconds(student)))
    of_teacher, of_student = zip(*taken, strict=True)
    return Timing(of_teacher), Timing(of_student)


def _milliseconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
