"""The gallery as one PNG: the paper's Figures 1 and 7 (Chen et al., TMLR 2025, arXiv 2406.03744) for any models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from redistill.internal.text import MIB, format_bytes
from redistill.report.plots import FAINT, INK, STUDENT, TEACHER, draw_comparison, make_figure, write_png
from redistill.studies.gallery.entries import Entry

WIDTH, HEAD, EACH, LEAST_HEAD, ROW = 1600, 150, 42, 460, 400  # pixels: all; the overview and its rows; footprints
COLUMNS = 2
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


def draw_gallery(entries: Sequence[Entry], path: str | os.PathLike[str]) -> None:
    """Write a PNG 1600 pixels wide: peaks of all, accuracies where known, and every footprint over the layers.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    known = [entry for entry in entries if entry.known]
    rows = -(-len(entries) // COLUMNS)
    head = max(LEAST_HEAD if known else 0, HEAD + EACH * len(entries))
    figure = make_figure((WIDTH, head + ROW * rows))
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(head, ROW * rows), hspace=0.02).ravel()
    panels = top.subplots(1, 2 if known else 1, squeeze=False)[0]
    if known:
        draw_frontier(panels[0], known)
    draw_peaks(panels[-1], entries)
    cells = bottom.subplots(rows, COLUMNS if len(entries) > 1 else 1, squeeze=False).ravel()
    for axes in cells[len(entries) :]:
        axes.set_axis_off()
    for axes, entry in zip(cells, entries, strict=False):
        draw_comparison(figure, axes, entry.comparison, _title(entry), legend_above=True)
    write_png(figure, path)


def _title(entry: Entry) -> str:
    return f"{entry.name}: {entry.comparison.ratio:.2f}x less"


def draw_frontier(axes: Axes, entries: Sequence[Entry]) -> None:
    """Accuracy against peak memory, an arrow from each teacher to its students, like the paper's Figure 1."""
    for teacher, group in groupby(sorted(entries, key=_of_teacher), key=_of_teacher):
        name, peak, top1 = teacher
        axes.plot(peak / MIB, top1, "s", color=TEACHER, markersize=8, zorder=4)
        axes.annotate(name, (peak / MIB, top1), (0, 9), textcoords="offset points", ha="center", fontsize=10,
                      color=INK, zorder=5, bbox=HALO)  # fmt: skip
        for entry in group:
            _draw_arrow(axes, (peak / MIB, top1), entry)
    axes.margins(x=0.15)
    axes.set_ylim(*span([a for e in entries for a in e.known]))
    _scale_sizes(axes)
    axes.set_xlabel(f"peak activation memory (MiB, {entries[0].comparison.convention} convention)", color=INK)
    axes.set_ylabel("top-1 accuracy (%)", color=INK)
    axes.plot([], [], "s", color=TEACHER, label="teacher")
    axes.plot([], [], "o", color=STUDENT, label="student")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=10, ncols=2)
    _style(axes, "Memory against accuracy", "both")


def span(percents: Sequence[float]) -> tuple[float, float]:
    """The range of an axis that shows these accuracies with room for labels, one point above and below at least."""
    room = max(1.0, 0.16 * (max(percents) - min(percents)))
    return min(percents) - room, max(percents) + room


def _of_teacher(entry: Entry) -> tuple[str, int, float]:
    return entry.name, entry.comparison.teacher.peak_bytes, entry.known[0]


def _draw_arrow(axes: Axes, start: tuple[float, float], entry: Entry) -> None:
    teacher, student = entry.known
    end = (entry.comparison.student.peak_bytes / MIB, student)
    arrow = {"arrowstyle": "-|>", "color": STUDENT, "alpha": 0.6, "linewidth": 1.3, "shrinkA": 6, "shrinkB": 5}
    axes.annotate("", end, start, arrowprops=arrow, zorder=2)
    axes.plot(*end, "o", color=STUDENT, markersize=8, zorder=4)
    text = f"{entry.comparison.ratio:.2f}x, {student - teacher:+.1f}"
    axes.annotate(text, end, (0, -15), textcoords="offset points", ha="center", fontsize=9, color=INK, zorder=5,
                  bbox=HALO)  # fmt: skip


def draw_peaks(axes: Axes, entries: Sequence[Entry]) -> None:
    """Each teacher's peak joined to its student's, on a logarithmic axis."""
    for row, entry in enumerate(entries):
        teacher, student = (p.peak_bytes for p in (entry.comparison.teacher, entry.comparison.student))
        axes.plot(
            (student / MIB, teacher / MIB), (row, row), color=FAINT, linewidth=7, solid_capstyle="round", zorder=1
        )
        for size, colour, mark, shift, side in (
            (teacher, TEACHER, "s", 10, "left"),
            (student, STUDENT, "o", -10, "right"),
        ):
            axes.plot(size / MIB, row, mark, color=colour, markersize=9, zorder=3)
            axes.annotate(format_bytes(size), (size / MIB, row), (shift, 0), textcoords="offset points", ha=side,
                          va="center", fontsize=9.5, color=INK)  # fmt: skip
        middle = (student * teacher) ** 0.5 / MIB
        axes.annotate(f"{entry.comparison.ratio:.2f}x", (middle, row), (0, 7), textcoords="offset points", ha="center",
                      fontsize=10, color=INK, weight="bold")  # fmt: skip
    axes.margins(x=0.25)
    _scale_sizes(axes)
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize=10)
    axes.set_ylim(len(entries) - 0.4, -0.7)
    _style(axes, f"Peak activation memory (MiB, {entries[0].comparison.convention} convention)", "x")


def _scale_sizes(axes: Axes) -> None:
    """A logarithmic axis of sizes with ticks at 1, 2, 5 and their tenfolds."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _style(axes: Axes, title: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, which="both")
    axes.grid(axis=grid, color=FAINT, linewidth=0.6, alpha=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
