"""Tables of text: columns as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Sequence

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
