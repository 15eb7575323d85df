"""The request: all that is asked of a student, as one value that flows down unchanged and is kept with the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from redistill.budget import Budget, parse_budget
from redistill.errors import ModelError, PlanError
from redistill.internal.suggestions import suggest
from redistill.memory.conventions import CONVENTIONS, DEPLOY, Convention, find_convention
from redistill.memory.lifetimes import check_dtype
from redistill.models.red_block import INITS
from redistill.passes.running import Pass, find_passes, pass_name
from redistill.planning.objectives import Objective, as_objective
from redistill.planning.taps import TapPlaces, read_taps

TAP_WORDS = ("auto", "none")
LEVERS = ("patches", "resize", "pool")
"""Ways to meet a budget: one that costs no accuracy, then those that do, in the order in which they act."""
MAX_EXTRA_MACS = 0.25


@dataclass(frozen=True)
class Request:
    """What is asked of a student; see :func:`redistill.transform` for what each part means.

    Attributes:
        budget: the limit; None where ``factors`` are given.
        factors: explicit pooling factors, one for each free stage; None where a budget decides.
        convention: how peak memory is counted.
        objective: which of the plans that fit is best.
        taps: ``none``, ``auto``, or the places of each tap as (student's, teacher's).
        init: how RED blocks start, ``gentle`` or ``default``, or ``light``, a cheaper block.
        dtype: the type that activations are counted in; None: as they are.
        reorder: whether operations are first put into the order of least memory.
        passes: the user's own, run after ours.
        levers: by what the budget is met: ``patches``, ``resize``, ``pool``, or several.
        max_extra_macs: the most that patches may compute more, as a share of the network's multiply-accumulates.

    Example:
        >>> request = Request.of(budget="4x", convention="arena")
        >>> request.limit(4096), str(request.convention)
        (1024, 'arena')
    """

    budget: Budget | None = None
    factors: tuple[int, ...] | None = None
    convention: Convention = DEPLOY
    objective: str | Objective = "macs"
    taps: str | TapPlaces = "none"
    init: str = "gentle"
    dtype: str | None = None
    reorder: bool = False
    passes: tuple[Pass, ...] = ()
    levers: tuple[str, ...] = ("pool",)
    max_extra_macs: float = MAX_EXTRA_MACS

    @classmethod
    def of(
        cls,
        budget: str | int | Budget | None = "4x",
        factors: Sequence[int] | None = None,
        convention: str | Convention = DEPLOY,
        objective: str | Objective | Callable[..., Any] = "macs",
        taps: str | Path | Sequence[Sequence[str]] = "none",
        init: str = "gentle",
        dtype: str | None = None,
        reorder: bool = False,
        passes: Iterable[Any] = (),
        levers: str | Sequence[str] = ("pool",),
        max_extra_macs: float = MAX_EXTRA_MACS,
    ) -> Request:
        """Read what a user writes: words, numbers, files and places.

        Raises:
            BudgetError, ModelError, PlanError, TapError, PassError: what is given cannot be read; the message names it.
        """
        if init not in INITS:
            raise ModelError(f"RED blocks cannot start {init!r}{suggest(init, INITS)}")
        check_dtype(dtype)
        return cls(
            budget=None if factors is not None or budget is None else parse_budget(budget),
            factors=None if factors is None else _whole_numbers(factors),
            convention=find_convention(convention),
            objective=objective if isinstance(objective, str) else as_objective(objective),
            taps=_places(taps),
            init=init,
            dtype=dtype,
            reorder=reorder,
            passes=find_passes(passes),
            levers=_levers(levers, factors),
            max_extra_macs=_share(max_extra_macs),
        )

    @property
    def goal(self) -> str:
        """What decided the plan: the objective's name, or ``factors``."""
        if self.factors is not None:
            return "factors"
        return self.objective if isinstance(self.objective, str) else self.objective.name

    def limit(self, teacher_peak: int) -> int | None:
        """The limit in bytes for a teacher that peaks at ``teacher_peak`` bytes; None where factors were given."""
        return None if self.budget is None else self.budget.limit(teacher_peak)

    def to_plain(self) -> dict[str, Any]:
        """The request as plain data, from which :meth:`from_plain` makes it again."""
        named = CONVENTIONS.get(self.convention.name) == self.convention
        return {
            "budget": self.budget.text if self.budget else None,
            "factors": list(self.factors) if self.factors else None,
            "convention": self.convention.name if named else asdict(self.convention),
            "objective": self.objective if isinstance(self.objective, str) else self.objective.name,
            "taps": self.taps if isinstance(self.taps, str) else [list(pair) for pair in self.taps],
            "init": self.init,
            "dtype": self.dtype,
            "reorder": self.reorder,
            "passes": [pass_name(each) for each in self.passes],
            "levers": list(self.levers),
            "max_extra_macs": self.max_extra_macs,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Request:
        """Read what :meth:`to_plain` wrote; what is not said is as by default.

        Nothing is imported by a name that is written: what is read must not decide what is run. So passes are left out,
        and a convention is one of ours or told in full.

        Raises:
            RedistillError: a value that cannot be used.
        """
        known = {field.name for field in fields(cls)} - {"passes"}
        given = {key: value for key, value in data.items() if key in known}
        return cls.of(**{**given, "convention": _read_convention(given.get("convention", DEPLOY.name))})


def _read_convention(written: Any) -> Convention:
    if isinstance(written, Mapping):
        return Convention(**written)
    if not isinstance(written, str) or written not in CONVENTIONS:
        raise ModelError(f"there is no convention {written!r}{suggest(str(written), CONVENTIONS)}")
    return CONVENTIONS[written]


def _whole_numbers(factors: Sequence[int]) -> tuple[int, ...]:
    if any(isinstance(f, bool) or int(f) != f or f < 1 for f in factors):
        raise PlanError(f"pooling factors are whole numbers from 1 on, not {', '.join(map(str, factors))}")
    return tuple(int(f) for f in factors)


def _levers(levers: str | Sequence[str], factors: Sequence[int] | None) -> tuple[str, ...]:
    """The levers in their own order, however they are given."""
    given = levers.split(",") if isinstance(levers, str) else list(levers)
    for lever in given:
        if lever not in LEVERS:
            raise PlanError(f"unknown lever {lever!r}{suggest(lever, LEVERS)}")
    if not given:
        raise PlanError(f"without a lever no budget can be met; levers are {', '.join(LEVERS)}")
    if factors is not None and "patches" in given:
        raise PlanError("explicit factors leave no budget for patches to meet; give a budget, or the lever pool alone")
    return tuple(lever for lever in LEVERS if lever in given)


def _share(value: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise PlanError(f"the extra multiply-accumulates allowed are a share from 0 on, such as 0.25, not {value!r}")
    return float(value)


def _places(taps: str | Path | Sequence[Sequence[str]]) -> str | TapPlaces:
    if isinstance(taps, str) and taps in TAP_WORDS:
        return taps
    return read_taps(taps)
