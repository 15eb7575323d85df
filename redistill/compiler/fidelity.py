"""Fidelity: of the plans that fit, the one whose student agrees best with its teacher on images, measured.

Multiply-accumulates do not order plans by accuracy. What does, before any training, is what a student gives once it has
been fitted to its teacher: each plan worth trying is carried out and fitted on one half of the images, and judged on
the other half. No labels are needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule
from tqdm import tqdm

from redistill.compiler.agreement import Agreement, Inputs, compare, run
from redistill.compiler.analysis import Analysis
from redistill.compiler.candidates import Candidates, Plan, find_candidates
from redistill.compiler.choosing import Choice, explain
from redistill.compiler.fitting.fitter import Extent, find_extents, fit_graphs
from redistill.compiler.levers import patch_alone
from redistill.compiler.request import Request
from redistill.errors import FitError, InfeasibleBudgetError, ModelError
from redistill.internal.text import format_bytes, format_shape

LOSSLESS = "fidelity: patches alone meet the budget, and no student agrees better than the teacher's own outputs"
LEAST = 4
"""Images that are needed: two to fit and two to judge by."""


@dataclass(frozen=True)
class Verdict:
    """How far a student agrees with its teacher before and after it is fitted, and which layers are best fitted."""

    inherited: Agreement
    fitted: Agreement
    layers: Extent = "all"

    @property
    def prefers_fitted(self) -> bool:
        """Whether the fitted weights agree at least as well as the inherited ones."""
        return self.fitted.rank >= self.inherited.rank

    @property
    def better(self) -> Agreement:
        """That of the weights that are kept."""
        return self.fitted if self.prefers_fitted else self.inherited

    def __str__(self) -> str:
        if self.prefers_fitted:
            return f"{self.fitted} (inherited weights: {self.inherited})"
        return f"{self.inherited} with the inherited weights (fitted: {self.fitted})"


@dataclass(frozen=True)
class Trial:
    """A plan that was carried out, fitted and judged."""

    choice: Choice
    factors: tuple[int, ...]
    verdict: Verdict

    def __str__(self) -> str:
        profile = self.choice.rewritten.profile
        return f"{','.join(map(str, self.factors))} ({format_bytes(profile.peak_bytes)}): {self.verdict}"


def choose_by_fidelity(
    analysis: Analysis, request: Request, calibration: Tensor | Inputs | None, seconds: float = 600.0
) -> Choice:
    """Choose the plan within the budget whose fitted student agrees best with its teacher; it comes fitted.

    Args:
        analysis: the teacher.
        request: with a budget; RED blocks that do not fit beside a plan are left out.
        calibration: images (N, C, H, W), or a tuple of what the network is called with; every second one is fitted to,
            the others judge.
        seconds: no further plan is begun once it would end later than this; one is always tried.

    Raises:
        ModelError: no images, too few, or of another shape than the network's input.
        InfeasibleBudgetError: no plan fits.
    """
    started = time.perf_counter()
    inputs = check_calibration(calibration, analysis.inputs)
    limit = request.limit(analysis.profile.peak_bytes)
    assert limit is not None, "a request has factors or a budget"
    if "patches" in request.levers and (alone := patch_alone(analysis, request, limit)) is not None:
        return replace(alone, notes=(*alone.notes, LOSSLESS))
    judge = Judge(analysis.graph_module, inputs)
    students = find_candidates(analysis, request, limit, seconds)
    looks = _look_at(students, judge, started + seconds / 2)
    trials: list[Trial] = []
    given_up = 0
    for plan in tqdm(looks, desc="fidelity", unit="plan", leave=False, disable=None):
        passed = time.perf_counter() - started
        if trials and passed * (len(trials) + 1) / len(trials) > seconds:
            given_up += 1
            continue
        choice = students[plan]()
        if choice is not None:
            factors = tuple(plan[s.index] for s in analysis.stages.free)
            trials.append(Trial(choice, factors, judge(choice.rewritten.graph_module, looks[plan])))
    if not trials:
        raise InfeasibleBudgetError(explain(analysis, limit))
    trials.sort(key=lambda trial: trial.verdict.better.rank, reverse=True)
    notes = _notes(trials, len(inputs[0]) // 2, given_up, seconds)
    return replace(trials[0].choice, notes=(*trials[0].choice.notes, *notes))


def _look_at(students: Candidates, judge: Judge, ends: float) -> dict[Plan, Agreement | None]:
    """How far each plan's student agrees as it is, the best first: the order in which fitting is worth its time.

    After the time ``ends`` those that were not looked at come last, in their own order.
    """
    seen: dict[Plan, Agreement] = {}
    unseen: dict[Plan, None] = {}
    for plan, make in students.items():
        if seen and time.perf_counter() > ends:
            unseen[plan] = None
        elif (choice := make()) is not None:
            seen[plan] = judge.agreement(choice.rewritten.graph_module)
    return dict(sorted(seen.items(), key=lambda item: item[1].rank, reverse=True)) | unseen


def _notes(trials: Sequence[Trial], images: int, given_up: int, seconds: float) -> Iterator[str]:
    yield f"fidelity: {len(trials)} plans fitted and judged on {images} other images; " + "; ".join(map(str, trials))
    if given_up:
        yield f"fidelity: {given_up} more plans were not tried within {seconds:.0f} seconds"


def check_calibration(calibration: Tensor | Inputs | None, examples: Inputs) -> Inputs:
    """The calibration as a tuple, once it is seen to be what the network takes.

    Raises:
        ModelError: it is not.
    """
    if calibration is None:
        raise ModelError("nothing to compare students by; give calibration=images (command line: --calibration FOLDER)")
    inputs = calibration if isinstance(calibration, tuple) else (calibration,)
    if len(inputs) != len(examples):
        raise ModelError(
            f"calibration has {len(inputs)} inputs, the network takes {len(examples)}; give one tensor each"
        )
    for given, example in zip(inputs, examples, strict=True):
        if not isinstance(given, Tensor) or given.dtype != example.dtype:
            kind = given.dtype if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise ModelError(f"calibration is {kind}, the network takes tensors of {example.dtype}; give those")
        if not given.isfinite().all():
            raise ModelError("calibration holds values that are no finite numbers; look at how it is prepared")
        if given.shape[1:] != example.shape[1:]:
            raise ModelError(
                f"calibration images are {format_shape(tuple(given.shape[1:]))}, the network is planned for "
                f"{format_shape(tuple(example.shape[1:]))}; give images of that size"
            )
    if len(inputs[0]) < LEAST or any(len(given) != len(inputs[0]) for given in inputs):
        raise ModelError(f"calibration needs {LEAST} images or more, not {len(inputs[0])}; some hundreds are better")
    return inputs


class Judge:
    """Fits students to a teacher on every second image, and compares their outputs on the others."""

    def __init__(self, teacher: GraphModule, inputs: Inputs) -> None:
        self.teacher = teacher
        self.fitted = tuple(value[0::2] for value in inputs)
        self.held_out = tuple(value[1::2] for value in inputs)
        self.aim = run(teacher, self.held_out)

    def __call__(self, student: GraphModule, inherited: Agreement | None = None) -> Verdict:
        """Fit ``student``, in place, and judge it; it keeps the weights it had where those agree better.

        ``inherited`` is how far it agrees as it is, where that is known.
        """
        inherited = inherited or self.agreement(student)
        before = best = {key: value.clone() for key, value in student.state_dict().items()}
        verdict: Verdict | None = None
        for layers in find_extents(student, self.teacher, self.fitted):
            student.load_state_dict(before)
            with suppress(FitError):
                fit_graphs(student, self.teacher, self.fitted, layers=layers)
            found = Verdict(inherited, self.agreement(student), layers)
            if verdict is None or found.fitted.rank > verdict.fitted.rank:
                verdict = found
                best = {key: value.clone() for key, value in student.state_dict().items()}
        assert verdict is not None
        student.load_state_dict(best if verdict.prefers_fitted else before)
        return verdict

    def agreement(self, student: GraphModule) -> Agreement:
        """How far a student agrees on the images held out."""
        return compare(run(student, self.held_out), self.aim)


def fit_where_better(student: GraphModule, teacher: GraphModule, inputs: Inputs) -> str:
    """Fit ``student`` to all images, in place, if its fit to every second one agrees better on the others.

    Returns:
        A note of which weights it has, and how far either agree.

    Raises:
        FitError: there is something to fit, and no layer that can be.
    """
    before = {key: value.clone() for key, value in student.state_dict().items()}
    judge = Judge(teacher, inputs)
    verdict = judge(student)
    judged = f"judged on {len(judge.held_out[0])} images, fitted to the others: {verdict}"
    if not verdict.prefers_fitted:
        return f"the inherited weights are kept, for they agree better; {judged}"
    student.load_state_dict(before)
    report = fit_graphs(student, teacher, inputs, layers=verdict.layers)
    return f"{report}, on {len(inputs[0])} images; {judged}"
