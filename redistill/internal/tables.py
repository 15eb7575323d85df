"""Tables of text: columns as wide as their widest cell, for terminals and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = Sequence[Sequence[str]]


def align_columns(rows: Rows, align: str = "", indent: int = 0) -> list[str]:
    """Lines of columns two spaces apart.

    Args:
        rows: cells of text, as many in every row.
        align: ``<`` or ``>`` for each column; by default the first is aligned to the left and all others to the right.
        indent: spaces before each line.

    >>> align_columns([("a", "1"), ("bc", "10")])
    ['a    1', 'bc  10']
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    signs = align or "<".ljust(len(columns), ">")
    cells = [[f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)] for row in rows]
    return [(" " * indent + "  ".join(row)).rstrip() for row in cells]


def render_table(rows: Rows, align: str = "") -> str:
    """The first row as heads, a line, and the other rows under them; ``align`` as in :func:`align_columns`."""
    head, *others = align_columns(rows, align)
    return "\n".join([head, "-" * len(head), *others])


def render_markdown(rows: Rows) -> str:
    """A Markdown table whose source is aligned too; the first row is the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


@dataclass
class Table:
    """Rows under named columns that read well in a terminal and can be pasted into Markdown; ``notes`` follow below.

    >>> table = Table(("network", "bytes"), notes=["Counted under deploy."])
    >>> table.add("resnet18", 4014080)
    >>> print(table)
    | network  | bytes   |
    |----------|---------|
    | resnet18 | 4014080 |
    <BLANKLINE>
    Counted under deploy.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """One more row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    @property
    def last(self) -> str:
        """The row added last, by itself: to be seen as soon as it is known."""
        return " | ".join(map(str, self.rows[-1]))

    def __str__(self) -> str:
        text = render_markdown([self.columns, *(tuple(map(str, row)) for row in self.rows)])
        return "\n".join([text, *([""] if self.notes else []), *self.notes])
