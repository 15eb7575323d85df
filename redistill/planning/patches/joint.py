"""Pooling and patches together: pooling plans from the best down, each with a bound on what patches can make of it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from redistill.memory.lifetimes import Buffer
from redistill.planning.objectives import Objective
from redistill.planning.patches.segmenting import Segmenter
from redistill.planning.problem import PlanningProblem
from redistill.planning.scaling import ScalingModel


def plans_by_score(problem: PlanningProblem, objective: Objective) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every legal plan with its score, the best first, whatever it needs: a best-first search over its prefixes."""
    scores = objective.scores(problem)
    most_after = [sum(float(s.max()) for s in scores[i:]) for i in range(len(scores) + 1)]
    queue: list[tuple[float, tuple[int, ...], float]] = [(-most_after[0], (), 0.0)]
    while queue:
        _, plan, score = heapq.heappop(queue)
        if len(plan) == len(scores):
            if problem.is_legal(plan):
                yield plan, score
            continue
        stage = len(plan)
        for choice, gain in enumerate(scores[stage]):
            longer = (*plan, choice)
            if _may_be_legal(problem, longer):
                reached = score + float(gain)
                heapq.heappush(queue, (-reached - most_after[stage + 1], longer, reached))


def _may_be_legal(problem: PlanningProblem, prefix: tuple[int, ...]) -> bool:
    last = len(prefix) - 1
    return all(table[prefix[a], prefix[b]] for (a, b), table in problem.legal.items() if max(a, b) == last)


class PatchBound:
    """Bytes that no way of running a pooled network in parts stays below, for any plan of a lattice.

    A path over the cuts passes each operation either as it is, with all that is alive then, or within a region, around
    which at least what is alive at both its cuts is held. The least such maximum is the bound.
    """

    def __init__(self, model: ScalingModel, segmenter: Segmenter) -> None:
        self.cuts = segmenter.cuts
        self.problem = model.problem()
        network = segmenter.network
        self.is_region = np.array([[network.is_region(a, b) for b in self.cuts] for a in self.cuts])
        shape = (len(self.cuts), len(self.cuts))
        self.constant = np.zeros(shape)
        self.usage = [np.zeros((len(c), *shape)) for c in model.choices]
        for buffer in model.buffers:
            stage, sizes = model.sizes(buffer)
            held = self._held(buffer)
            if stage is None:
                self.constant += buffer.bytes * held
            else:
                self.usage[stage] += sizes[:, None, None] * held

    def _held(self, buffer: Buffer) -> np.ndarray:
        """Between which pairs of cuts a buffer is held: alive at the first, or made between them and alive after."""
        alive = np.array([buffer.born < c <= buffer.dies for c in self.cuts])
        held: np.ndarray = alive[:, None] | alive[None, :]
        return held

    def of(self, plan: Sequence[int]) -> float:
        """The bound for a plan, given as an index into each stage's choices."""
        held = self.constant + sum(u[i] for u, i in zip(self.usage, plan, strict=True))
        live = self.problem.constant + sum(u[i] for u, i in zip(self.problem.usage, plan, strict=True))
        best = np.full(len(self.cuts), np.inf)
        best[0] = 0.0
        for end in range(1, len(self.cuts)):
            whole = max(best[end - 1], float(live[self.cuts[end - 1] : self.cuts[end]].max(initial=0)))
            parts = np.maximum(best[:end], held[:end, end])[self.is_region[:end, end]]
            best[end] = min(whole, float(parts.min(initial=np.inf)))
        return float(best[-1])
