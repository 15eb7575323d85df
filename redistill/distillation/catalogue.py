"""The methods as a list to read: names, papers, options."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redistill.distillation.method import DistillationMethod
from redistill.distillation.registry import METHODS
from redistill.internal.tables import render_table


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method's constructor: its name, type and default."""

    name: str
    type: str
    default: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default!r}"


@dataclass(frozen=True)
class MethodEntry:
    """What is to be known of a method before it is chosen.

    Attributes:
        name: the word that asks for it.
        about: what it does, in a few words.
        paper: where it was published; empty for our own.
        reads: what it reads of the networks and the batch.
        weight: the published weight of its loss beside the cross-entropy.
        two_stage: whether it has a first stage of training, with losses of its own.
        options: its options, with their defaults.
    """

    name: str
    about: str
    paper: str
    reads: tuple[str, ...]
    weight: float
    two_stage: bool
    options: tuple[Option, ...]

    def __repr__(self) -> str:
        options = "".join(f"\n  {option}" for option in self.options)
        facts = (self.about, self.paper, f"weight {self.weight:g}", f"reads {', '.join(self.reads)}")
        return f"{self.name}: {'; '.join(filter(None, facts))}{options}"


class Catalogue(Mapping[str, MethodEntry]):
    """Methods by name; printed as a table."""

    def __init__(self, entries: Mapping[str, MethodEntry]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> MethodEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        rows = [("method", "weight", "paper", "options")]
        for entry in self._entries.values():
            options = ", ".join(f"{option.name}={option.default!r}" for option in entry.options)
            rows.append((entry.name, f"{entry.weight:g}", entry.paper or "our own", options))
        return render_table(rows, "<><<")


def methods() -> Catalogue:
    """List the distillation methods: names, papers, published weights, options with types and defaults.

    Returns:
        A mapping by name that prints as a table.

    Example:
        >>> import redistill
        >>> redistill.methods()["kd"]
        kd: softened class probabilities; Hinton, Vinyals and Dean, arXiv 1503.02531; weight 1; reads logits
          temperature: float = 4.0
        >>> len(redistill.methods()) > 20
        True
    """
    return Catalogue({name: describe_method(kind) for name, kind in METHODS.items()})


def describe_method(kind: type[DistillationMethod]) -> MethodEntry:
    """One method's entry; one's own class has one too."""
    return MethodEntry(
        name=kind.name,
        about=_about(kind),
        paper=kind.paper,
        reads=tuple(sorted(need.value for need in kind.needs)),
        weight=kind.weight,
        two_stage=kind.two_stage,
        options=tuple(
            Option(parameter.name, _type_name(parameter.annotation), parameter.default)
            for parameter in inspect.signature(kind).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        ),
    )


def _about(kind: type[DistillationMethod]) -> str:
    """The first line of its module's docstring, without the name before and the paper behind."""
    line = (sys.modules[kind.__module__].__doc__ or kind.__doc__ or "").partition("\n")[0]
    return re.sub(r"^[\w-]+: |\s*\([^()]*\)|\.$", "", line).rstrip(".")


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
