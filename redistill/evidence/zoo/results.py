"""Results of the zoo: one JSON line a network, kept as they come, and tables of them."""

from __future__ import annotations

import json
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
    convolutional = [r for r in rows if r.convolutions and r.outcome != "not built"]
    verified = sum(r.outcome == "verified" for r in convolutional)
    table.notes.append(f"of {len(convolutional)} networks with convolutions {verified} are verified")
    table.notes += [f"{count} {outcome}" for outcome, count in sorted(Counter(r.outcome for r in rows).items())]
    return table


def _counts(rows: Sequence[Row]) -> tuple[str, ...]:
    def count(*outcomes: str) -> str:
        return str(sum(r.outcome in outcomes for r in rows))

    seconds = [r.seconds for r in rows if r.seconds is not None] or [0.0]
    at_asked = sum(r.outcome == "verified" and r.budget == "2x" for r in rows)
    exact = f"{sum(r.difference == 0 for r in rows)} of {sum(r.difference is not None for r in rows)}"
    return (
        str(len(rows)), str(sum(r.convolutions > 0 for r in rows)), str(sum(r.traced for r in rows)),
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
