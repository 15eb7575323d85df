"""The gallery's drawings as SVG, coloured by the page's style sheet; they need no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import LogLocator, MaxNLocator

from redistill.internal.text import KIB, MIB, SMALLEST_MIB, format_bytes
from redistill.report.data import Comparison
from redistill.report.plots import Curve, Section, outline
from redistill.studies.gallery.entries import Entry
from redistill.studies.gallery.picture import span

ASIDE = 1.4  # how far the axis of sizes goes beyond the points
LETTER = 6.3  # width of a small letter
STEPS = (1, 2, 2.5, 5, 10)  # between ticks
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Frame:
    """Width and height of a drawing, and the margins around its plot: left, right, top, bottom."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def across(self, low: float, high: float) -> Scale:
        """From values to the plot's width."""
        room = self.width - self.left - self.right
        return lambda value: self.left + room * (value - low) / (high - low)

    def up(self, low: float, high: float) -> Scale:
        """From values to the plot's height, the larger the higher."""
        room = self.height - self.top - self.bottom
        return lambda value: self.top + room * (high - value) / (high - low)


CARD = Frame(600, 250, 40, 8, 18, 42)
FRONTIER = Frame(600, 330, 42, 24, 24, 44)


def draw_footprint(comparison: Comparison) -> str:
    """Memory over the layers, the student's before the teacher's; the stages are named below."""
    (teacher, student), sections = outline(comparison)
    limit = comparison.plan.limit
    most = 1.12 * max(*teacher.size, *student.size, limit or 0)
    x, y = CARD.across(0, len(teacher.size)), CARD.up(0, most)
    line = "" if limit is None else _line(CARD.left, CARD.width - CARD.right, y(limit), y(limit), "limit")
    parts = (
        *_grid(CARD, y, most),
        *(_line(x(s.first), x(s.first), CARD.top, y(0), "edge") for s in sections[1:]),
        _area(teacher, x, y, "teacher"),
        _area(student, x, y, "student"),
        line,
        *(f'<circle class="{c.name}" cx="{x(c.peak + 0.5):.1f}" cy="{y(c.size[c.peak]):.1f}" r="4"/>'
          for c in (teacher, student)),
        *(_name_section(s, x, y(0)) for s in sections),
        f'<line class="cursor" y1="{CARD.top}" y2="{y(0):.1f}"/>',
    )  # fmt: skip
    peaks = " and ".join(f"{c.name} at most {format_bytes(max(c.size))}" for c in (teacher, student))
    return _svg(CARD, f"Memory over the layers: {peaks}", parts)


def draw_frontier(entries: Sequence[Entry]) -> str:
    """Accuracy against peak memory; each student links to its card."""
    known = [(position, entry) for position, entry in enumerate(entries) if entry.known]
    points = [point for _, entry in known for point in _points(entry)]
    low, high = min(size for size, _ in points) / ASIDE, max(size for size, _ in points) * ASIDE
    x = FRONTIER.across(math.log(low), math.log(high))
    bottom, top = span([top1 for _, top1 in points])
    y = FRONTIER.up(bottom, top)
    parts = [
        *_sizes_below(x, low, high),
        *_percents(y, bottom, top),
        *(_student_mark(position, entry, x, y) for position, entry in known),
        *(_teacher_mark(entry, x, y) for _, entry in known),
    ]
    return _svg(FRONTIER, "Accuracy against peak activation memory of teachers and students", parts)


def _points(entry: Entry) -> tuple[tuple[float, float], tuple[float, float]]:
    """Peak in bytes and accuracy of teacher and student."""
    teacher, student = entry.known
    return (entry.comparison.teacher.peak_bytes, teacher), (entry.comparison.student.peak_bytes, student)


def _teacher_mark(entry: Entry, x: Scale, y: Scale) -> str:
    (size, top1), _ = _points(entry)
    left, top = x(math.log(size)), y(top1)
    about = escape(f"{entry.name}: {format_bytes(size)}, {top1:.2f} %")
    return (
        f'<rect class="teacher" x="{left - 5:.1f}" y="{top - 5:.1f}" width="10" height="10" rx="2">'
        f"<title>{about}</title></rect>" + _text(left, top - 11, entry.name, "middle", "name")
    )


def _student_mark(position: int, entry: Entry, x: Scale, y: Scale) -> str:
    teacher, (size, top1) = _points(entry)
    start, end = (x(math.log(teacher[0])), y(teacher[1])), (x(math.log(size)), y(top1))
    words = f"{entry.comparison.ratio:.2f}x, {top1 - teacher[1]:+.1f}"
    about = escape(f"student of {entry.name}: {format_bytes(size)}, {top1:.2f} %")
    return (
        f'<line class="way" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        f'<a href="#student-{position}"><circle class="student" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="6">'
        f"<title>{about}</title></circle>" + _text(end[0], end[1] + 20, words, "middle") + "</a>"
    )


def _sizes_below(x: Scale, low: float, high: float) -> list[str]:
    ticks = [t for t in LogLocator(subs=(1, 2, 5)).tick_values(low / MIB, high / MIB) if low <= t * MIB <= high]
    base = FRONTIER.height - FRONTIER.bottom
    places = [(x(math.log(tick * MIB)), tick) for tick in ticks]
    lines = [_line(place, place, FRONTIER.top, base, "grid") for place, _ in places]
    labels = [_text(place, base + 18, f"{tick:g}", "middle", "soft") for place, tick in places]
    middle = (FRONTIER.left + FRONTIER.width - FRONTIER.right) / 2
    return [*lines, *labels, _text(middle, base + 38, "peak activation memory (MiB)", "middle", "soft")]


def _percents(y: Scale, low: float, high: float) -> list[str]:
    ticks = [t for t in MaxNLocator(5, steps=STEPS).tick_values(low, high) if low <= t <= high]
    lines = [_line(FRONTIER.left, FRONTIER.width - FRONTIER.right, y(t), y(t), "grid") for t in ticks]
    labels = [_text(FRONTIER.left - 8, y(t) + 4, f"{t:g}", "end", "soft") for t in ticks]
    return [*lines, *labels, _text(FRONTIER.left - 38, 12, "top-1 accuracy (%)", "start", "soft")]


def _grid(frame: Frame, y: Scale, most: float) -> list[str]:
    unit, sign = (MIB, "MiB") if most >= SMALLEST_MIB * MIB else (KIB, "KiB")
    ticks = [t * unit for t in MaxNLocator(5, steps=STEPS).tick_values(0, most / unit) if 0 <= t * unit <= most]
    lines = [_line(frame.left, frame.width - frame.right, y(t), y(t), "grid") for t in ticks]
    labels = [_text(frame.left - 7, y(t) + 4, f"{t / unit:g}", "end", "soft") for t in ticks]
    return [*lines, *labels, _text(frame.left - 7, 11, sign, "end", "soft")]


def _area(curve: Curve, x: Scale, y: Scale, name: str) -> str:
    steps = "".join(f"V{y(size):.1f}H{x(i + 1):.1f}" for i, size in enumerate(curve.size))
    return f'<path class="{name}" d="M{x(0):.1f},{y(0):.1f}{steps}V{y(0):.1f}"/>'


def _name_section(section: Section, x: Scale, base: float) -> str:
    """The name's end that fits, and the grids where they do."""
    room, middle = x(section.end) - x(section.first) - 6, (x(section.first) + x(section.end)) / 2
    parts = section.name.split(".")
    tails = (("…" if i else "") + ".".join(parts[i:]) for i in range(len(parts)))
    name = next((tail for tail in tails if len(tail) * LETTER <= room), "")
    detail = section.detail if name and len(section.detail) * LETTER <= room else ""
    return (_text(middle, base + 17, name) if name else "") + (
        _text(middle, base + 33, detail, style="soft") if detail else ""
    )


def _line(x1: float, x2: float, y1: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(frame: Frame, about: str, parts: Sequence[str]) -> str:
    size = f"0 0 {frame.width} {frame.height}"
    return f'<svg viewBox="{size}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'
