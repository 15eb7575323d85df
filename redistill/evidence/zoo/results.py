"""Results of the zoo: one JSON line a network, kept as they come, and tables of them."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from redistill.internal.tables import Table

FILE = "zoo.jsonl"


@dataclass
class Row:
    """What became of one network.

    Attributes:
        outcome: ``verified``, ``refused``, ``wrong`` (a student that fails a check), ``crashed`` (no error of this
            library's), ``died`` (with the signal as reason), ``out of time``, ``out of memory``, ``not built``.
        convolutions: those whose windows overlap, so neither pointwise ones nor patch embeddings.
        part: the part that was planned, where the whole cannot be traced for the data decide what it does.
        poolable: whether a plan of its lattice needs less than the teacher; None where there is no lattice.
        budget: ``2x`` as asked, or ``any`` where 2x is out of reach.
        difference: bytes measured while the student ran minus bytes predicted (``graph``).
        seconds: of one processor, from the module to its student.
    """

    library: str
    network: str
    outcome: str = ""
    convolutions: int = 0
    traced: bool = False
    planned: bool = False
    budget: str = ""
    ratio: float | None = None
    factors: str = ""
    taps: int = 0
    difference: int | None = None
    seconds: float | None = None
    reason: str = ""
    part: str = ""
    poolable: bool | None = None

    @property
    def is_convolutional(self) -> bool:
        """Whether it has more than one such convolution: one alone is a stem or a patch embedding."""
        return self.convolutions > 1


class Results:
    """The rows in a folder; a network that has one is not tried again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text() if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a kill has cut the last line
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text)
        rows = [Row(**json.loads(line)) for line in text.splitlines()]
        self.rows = {(row.library, row.network): row for row in rows}

    def add(self, row: Row) -> None:
        """Keep a row, at once."""
        self.rows[row.library, row.network] = row
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def summary(rows: Sequence[Row]) -> Table:
    """One line a library and one for all."""
    table = Table((
        "library", "tried", "with convolutions", "traced", "verified", "of these at 2x", "bytes exact", "refused",
        "wrong", "crashed or died", "out of time or memory", "seconds, median", "longest",
    ))  # fmt: skip
    by_library = {name: [r for r in rows if r.library == name] for name in dict.fromkeys(r.library for r in rows)}
    for name, some in (*by_library.items(), ("all", rows)):
        table.add(name, *_counts([r for r in some if r.outcome != "not built"]))
    convolutional = [r for r in rows if r.is_convolutional and r.outcome != "not built"]
    table.notes.append(_share_verified(convolutional))
    table.notes.append(_share_of_poolable(convolutional))
    table.notes += [f"{count} {outcome}" for outcome, count in sorted(Counter(r.outcome for r in rows).items())]
    return table


def _share_verified(rows: Sequence[Row]) -> str:
    """How many of the networks with convolutions are verified, and at which budgets."""
    verified = [r for r in rows if r.outcome == "verified"]
    milder = [r.ratio or 1.0 for r in verified if r.budget != "2x"]
    parts = sum(r.part != "" for r in verified)
    share = f"{len(verified) / max(1, len(rows)):.1%}"
    return (
        f"of {len(rows)} networks with convolutions beyond a patch embedding {len(verified)} are verified ({share}): "
        f"{len(verified) - len(milder)} at 2x and {len(milder)} at the mildest budget that they have (in the median "
        f"{statistics.median(milder or [1.0]):.2f}x); {parts} of them up to where only the data decide what follows"
    )


def _share_of_poolable(rows: Sequence[Row]) -> str:
    """How many of those are verified whose lattice has any plan that needs less than the teacher."""
    verified = sum(r.outcome == "verified" for r in rows)
    bare = sum(r.outcome == "refused" and r.poolable is False for r in rows)
    rest = len(rows) - bare
    share = f"{verified / max(1, rest):.1%}"
    return (
        f"of the others, {bare} have no plan that needs less than the teacher, whose peak is at an image, at an output "
        f"or where a grid is fixed; of the remaining {rest} networks {verified} are verified ({share})"
    )


_REASONS = {
    "only the data decide what it does": r"depends on the data|reads the value of a tensor",
    "it has no grid that grows with an input": r"no side of an input",
    "a position embedding, a table or a view by constants fixes the grid": r"needs this very size",
    "its code reads a size as a number": r"reads its very size",
    "no plan fits its windows": r"did not hold when carried out",
    "the input or an output is the peak": r"for it is (the input|an output)",
}


def refusals(rows: Iterable[Row]) -> Table:
    """Why networks are refused, each counted at the first reason in this order that it names."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.outcome == "refused":
            found.setdefault(_reason_of(row), []).append(row)
    table = Table(("refused, for", "networks", "with convolutions", "which"))
    for reason, some in sorted(found.items(), key=lambda item: -len(item[1])):
        names = ", ".join(r.network.partition("?")[0] if "name=" not in r.network else _named(r.network) for r in some)
        table.add(reason, str(len(some)), str(sum(r.is_convolutional for r in some)), names)
    return table


def _reason_of(row: Row) -> str:
    return next((name for name, words in _REASONS.items() if re.search(words, row.reason)), "another reason")


def _named(network: str) -> str:
    """``resnet18`` for ``get_model?name=resnet18&pretrained=false``."""
    return re.sub(r".*\bname=([^&]+).*", r"\1", network)


def _counts(rows: Sequence[Row]) -> tuple[str, ...]:
    def count(*outcomes: str) -> str:
        return str(sum(r.outcome in outcomes for r in rows))

    seconds = [r.seconds for r in rows if r.seconds is not None] or [0.0]
    at_asked = sum(r.outcome == "verified" and r.budget == "2x" for r in rows)
    exact = f"{sum(r.difference == 0 for r in rows)} of {sum(r.difference is not None for r in rows)}"
    return (
        str(len(rows)), str(sum(r.is_convolutional for r in rows)), str(sum(r.traced for r in rows)),
        count("verified"), str(at_asked), exact, count("refused"), count("wrong"), count("crashed", "died"),
        count("out of time", "out of memory"), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}",
    )  # fmt: skip


def listing(rows: Iterable[Row]) -> Table:
    """One line a network."""
    table = Table(("library", "network", "outcome", "ratio", "factors", "taps", "bytes off", "seconds", "why"))
    for r in rows:
        shown = [r.ratio and f"{r.ratio:.2f}x", r.factors, r.taps or "", r.difference, r.seconds]
        table.add(r.library, r.network, r.outcome, *("" if x is None else x for x in shown), r.reason.replace("|", "/"))
    return table
