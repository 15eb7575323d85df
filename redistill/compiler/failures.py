"""Failures: why plans did not hold when they were carried out, and what need not be tried again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from redistill.compiler.analysis import Analysis
from redistill.errors import PlanError
from redistill.memory.lifetimes import MemoryProfile
from redistill.planning.problem import Forbidden, PlanningProblem

MAX_SECONDS = 40.0  # a search stops here and says so
CONVINCING = 3  # plans that fail at one operation with the same factors around it: no other plan with these is tried


class Failures:
    """What a search has learnt of plans that failed; a bar on stderr, if that is a terminal, once it takes a second."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.reasons: Counter[str] = Counter()  # by the operation at fault, where one is known
        self._texts: dict[str, str] = {}
        self.learnt: set[tuple[tuple[int, int], ...]] = set()
        self._seen: Counter[tuple[str, tuple[tuple[int, int], ...]]] = Counter()
        self._ends = time.monotonic() + MAX_SECONDS
        self.least: tuple[tuple[int, ...], MemoryProfile] | None = None  # of those that hold, but are too large
        self._bar = tqdm(desc="plans carried out", unit="plan", delay=1, disable=None, leave=False)

    def __enter__(self) -> Failures:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def out_of_time(self) -> bool:
        """Whether the search has taken as long as it may."""
        return time.monotonic() > self._ends

    def too_large(self, by_stage: tuple[int, ...], profile: MemoryProfile) -> None:
        """Count a plan that was carried out and holds, but needs more than was planned."""
        self._bar.update()
        if self.least is None or profile.peak_bytes < self.least[1].peak_bytes:
            self.least = by_stage, profile

    def note(self, error: PlanError, by_stage: Sequence[int]) -> None:
        """Count a plan that failed when it was carried out; ``error`` says why."""
        self._bar.update()
        self.reasons[error.node or str(error)] += 1
        self._texts.setdefault(error.node or str(error), str(error))
        culprits = tuple((s, by_stage[s]) for s in self._stages_at(error.node))
        if any(factor > 1 for _, factor in culprits):
            self._seen[error.node, culprits] += 1
            if self._seen[error.node, culprits] >= CONVINCING:
                self.learnt.add(culprits)

    def forbidden(self, problem: PlanningProblem) -> Forbidden:
        """What has been learnt, in the terms of a problem: choices of some stages that do not go together."""
        return frozenset(
            tuple((s, problem.choices[s].index(factor)) for s, factor in culprits)
            for culprits in self.learnt
            if all(factor in problem.choices[s] for s, factor in culprits)
        )

    def summary(self) -> str:
        """How many plans failed, and the commonest reason."""
        if not self.reasons:
            return ""
        place, times = self.reasons.most_common(1)[0]
        total = sum(self.reasons.values())
        stopped = f" (the search stopped after {MAX_SECONDS:.0f} s)" if self.out_of_time else ""
        share = "all" if times == total else f"{times}"
        return f"; {total} plans did not hold when carried out{stopped}, {share} because {self._texts[place]}"

    def _stages_at(self, node: str) -> list[int]:
        """The stages of an operation and of what it reads."""
        found = next((n for n in self.analysis.graph_module.graph.nodes if n.name == node), None)
        if found is None:
            return []
        stage_of = self.analysis.stages.stage_of
        return sorted({stage_of[n.name] for n in (found, *found.all_input_nodes) if n.name in stage_of})
