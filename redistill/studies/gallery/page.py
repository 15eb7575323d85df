"""The gallery as one self-contained HTML page: memory against accuracy, all peaks, and a card for each student."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from redistill.internal.files import write_atomically
from redistill.internal.text import format_bytes, format_count, format_share
from redistill.report.data import Comparison, align_steps
from redistill.report.page import Cell, embed, fill, footer, section, table
from redistill.report.phrases import describe_convention, step_place
from redistill.report.plots import outline
from redistill.studies.gallery.drawings import CARD, draw_footprint, draw_frontier
from redistill.studies.gallery.entries import Entry

TITLE = "Students beside their teachers"


def write_gallery(
    entries: Sequence[Entry], path: str | os.PathLike[str], refused: Mapping[str, str] | None = None
) -> None:
    """Write the page; it needs no network.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    count = f"{len(entries)} students" if len(entries) > 1 else "one student"
    page = fill(
        "gallery.html",
        title=TITLE,
        subtitle=f"{count}: what pooling earlier saves, layer by layer",
        convention=escape("; ".join(dict.fromkeys(describe_convention(e.comparison.convention) for e in entries))),
        overview=_frontier(entries) + _peaks(entries),
        cards="".join(_card(position, entry) for position, entry in enumerate(entries)),
        sections=_figures_section(entries) + _refused_section(refused or {}),
        footer=footer(),
        data=embed({"cards": [_readings(e.comparison) for e in entries], "frame": _frame()}),
    )
    write_atomically(path, page.encode())


def _frontier(entries: Sequence[Entry]) -> str:
    if not any(entry.known for entry in entries):
        return ""
    about = "From each teacher to its students: how many times less memory, and how many points of accuracy."
    return section("Memory against accuracy", about, draw_frontier(entries))


def _peaks(entries: Sequence[Entry]) -> str:
    most = max(max(e.comparison.teacher.peak_bytes, e.comparison.student.peak_bytes) for e in entries)
    rows = "".join(
        f'<a href="#student-{position}">{escape(entry.name)}</a><div class="tracks">'
        + "".join(_track(p.peak_bytes, most) for p in (entry.comparison.teacher, entry.comparison.student))
        + f"</div><b>{entry.comparison.ratio:.2f}x</b>"
        for position, entry in enumerate(entries)
    )
    about = "The most bytes of activations alive at once."
    return section("Peak activation memory", about, f'<div class="peaks">{rows}</div>')


def _track(size: int, most: int) -> str:
    return f'<div class="track"><i style="width:{72 * size / most:.1f}%"></i>{format_bytes(size)}</div>'


def _card(position: int, entry: Entry) -> str:
    c = entry.comparison
    (teacher, student), _ = outline(c)
    chips = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _chips(entry))
    return (
        f'<section id="student-{position}"><div class="card-head"><h2>{escape(entry.name)}</h2>'
        f'<span class="sizes">{format_bytes(c.teacher.peak_bytes)} <i aria-label="to">→</i> '
        f"<b>{format_bytes(c.student.peak_bytes)}</b>, {c.ratio:.2f}x</span></div>"
        f'<p class="readout">{escape(entry.subject)} at {escape(c.input)}<br>'
        f'<span class="t">teacher\'s peak at {escape(teacher.place)}</span> · '
        f'<span class="s">student\'s at {escape(student.place)}</span></p>'
        f'{draw_footprint(c)}<dl class="chips">{chips}</dl></section>'
    )


def _chips(entry: Entry) -> list[tuple[str, str]]:
    c = entry.comparison
    chips = [
        ("Pooling", " ".join(f"÷{factor}" for factor in c.plan.factors)),
        ("MACs kept", format_share(c.student.macs, c.teacher.macs)),
        ("Parameters", f"{format_count(c.teacher.parameters)} → {format_count(c.student.parameters)}"),
    ]
    accuracy = entry.describe_accuracy()
    return [*chips, ("Top-1", accuracy)] if accuracy else chips


def _figures_section(entries: Sequence[Entry]) -> str:
    head = ["Model", "Input", "Teacher's peak", "Student's peak", "Less", "MACs kept", "Teacher's parameters",
            "Student's parameters", "Top-1"]  # fmt: skip
    body = [
        [
            Cell(entry.name),
            Cell(c.input),
            Cell(format_bytes(c.teacher.peak_bytes)),
            Cell(format_bytes(c.student.peak_bytes)),
            Cell(f"{c.ratio:.2f}x"),
            Cell(format_share(c.student.macs, c.teacher.macs)),
            Cell(format_count(c.teacher.parameters)),
            Cell(format_count(c.student.parameters)),
            Cell(entry.describe_accuracy()),
        ]
        for entry in entries
        for c in (entry.comparison,)
    ]
    return section("All figures", "", table("All figures", head, body))


def _refused_section(refused: Mapping[str, str]) -> str:
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in refused.items())
    return section("Out of reach", "The budget cannot be met.", f"<ul>{items}</ul>") if refused else ""


def _readings(comparison: Comparison) -> dict[str, Any]:
    """What a card tells under the pointer: place and both sizes for each column."""
    c = comparison
    (teacher, student), _ = outline(c)
    places = [
        step_place(c.teacher.timeline[t] if t is not None else c.student.timeline[s or 0])
        for t, s in align_steps(c.teacher, c.student)
    ]
    sizes = {curve.name: [format_bytes(size) for size in curve.size] for curve in (teacher, student)}
    return {"places": places, **sizes}


def _frame() -> dict[str, int]:
    return {"width": CARD.width, "left": CARD.left, "right": CARD.right}
