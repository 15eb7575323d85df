"""Plots of memory over layers, like the paper's Figure 7 (Chen et al., TMLR 2025, arXiv 2406.03744), as PNG files."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redistill.internal.files import write_atomically
from redistill.internal.text import KIB, MIB, SMALLEST_MIB, format_bytes, format_shape, shorten
from redistill.memory.lifetimes import MemoryProfile
from redistill.report.data import Comparison, align_steps, group_steps, runs, stage_of_steps, stage_rows
from redistill.report.ladder import Rung, find_ladder
from redistill.report.phrases import step_place
from redistill.report.tiles import regions_of_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SIZE = (1200, 500)  # pixels
DPI = 100
LONGEST_NAME = 18
LONGEST_PLACE = 44
WIDE = 900  # pixels from which on the ladder has room beside the plot
RUNG_WIDTH = 36
TEACHER, STUDENT, LIMIT = "#5B6B7F", "#E0762B", "#0B6E99"  # told apart by lightness too (Okabe and Ito's advice)
INK, FAINT = "#1F2933", "#D5DAE0"


@dataclass(frozen=True)
class Curve:
    """Bytes at each column of the plot, with the peak's column and place."""

    name: str
    colour: str
    size: tuple[float, ...]
    peak: int
    place: str
    strength: float


@dataclass(frozen=True)
class Section:
    """Columns ``first`` up to ``end`` (not included) that share a name."""

    name: str
    detail: str
    first: int
    end: int


def plot(comparison: Comparison, path: str | os.PathLike[str], size: tuple[int, int] = SIZE) -> None:
    """Write a PNG of ``size`` pixels: the memory of teacher and student over their layers, with stages and budget.

    Beside it, where there is room, the ladder of levers.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    c = comparison
    figure = make_figure(size)
    title = f"{c.title}  {c.input}: {c.ratio:.2f}x less peak activation memory ({c.convention} convention)"
    if size[0] < WIDE:
        draw_comparison(figure, figure.add_subplot(), c, title)
    else:
        over_layers, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        draw_comparison(figure, over_layers, c, title)
        draw_ladder(beside, find_ladder(c), max(c.teacher.peak_bytes, c.student.peak_bytes))
    write_png(figure, path)


def draw_comparison(figure: Figure, axes: Axes, comparison: Comparison, title: str, legend_above: bool = False) -> None:
    """Draw the memory of teacher and student over their layers into ``axes``; small ones want their legend above."""
    _draw(figure, axes, title, *outline(comparison), comparison.plan.limit, legend_above)


def draw_ladder(axes: Axes, rungs: Sequence[Rung], largest: int) -> None:
    """Draw each lever's peak as a rung beside the plot whose height ``axes`` shares, with what it costs."""
    unit, _ = _unit(largest)
    heights = [rung.bytes / unit for rung in rungs]
    top = max(axes.get_ylim()[1], 1.08 * max(heights))
    axes.set_ylim(0, top)
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    for rung, height, place in zip(rungs, heights, _spread(heights, 0.14 * top, top), strict=True):
        axes.plot([0, 0.05, 0.13, 0.16], [height, height, place, place], color=INK, linewidth=1, clip_on=False)
        lever = textwrap.fill(f"{format_bytes(rung.bytes)}  {rung.lever}", RUNG_WIDTH)
        cost = textwrap.fill(rung.cost, RUNG_WIDTH)
        axes.text(0.18, place, lever, va="bottom", fontsize=9, color=INK, in_layout=False)
        axes.text(0.18, place, cost, va="top", fontsize=8, color=TEACHER, linespacing=1.2, in_layout=False)


def _spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Falling heights moved apart to at least ``gap``, within 0 and ``top``, none further than needed."""
    places = list(heights)
    for index in range(len(places)):
        ceiling = places[index - 1] - gap if index else top - gap / 2
        places[index] = min(places[index], ceiling)
    for index in reversed(range(len(places))):
        floor = places[index + 1] + gap if index + 1 < len(places) else gap / 2
        places[index] = max(places[index], floor)
    return places


def outline(comparison: Comparison) -> tuple[tuple[Curve, Curve], list[Section]]:
    """Teacher's and student's curve over the same columns, and the stages as sections of these."""
    c = comparison
    columns = align_steps(c.teacher, c.student)
    curves = (
        _curve("teacher", TEACHER, c.teacher, [t for t, _ in columns], 0.30),
        _curve("student", STUDENT, c.student, [s for _, s in columns], 0.55),
    )
    return curves, _stage_sections(c, columns)


def plot_profile(
    profile: MemoryProfile, path: str | os.PathLike[str], title: str = "", size: tuple[int, int] = SIZE
) -> None:
    """Write a PNG of ``size`` pixels: the memory of one model over its layers, with its modules named.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    curve = _curve("memory", TEACHER, profile, range(len(profile.timeline)), 0.40)
    sections = [Section(g.name, "", g.first, g.last + 1) for g in group_steps(profile)]
    heading = f"{title}: " if title else ""
    peak = format_bytes(profile.peak_bytes)
    figure = make_figure(size)
    title = f"{heading}peak activation memory {peak} ({profile.convention} convention)"
    _draw(figure, figure.add_subplot(), title, (curve,), sections)
    write_png(figure, path)


def make_figure(size: tuple[int, int]) -> Figure:
    """An empty figure of ``size`` pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white", layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure as a PNG, whole or not at all.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]  # savefig would heed the user's settings
    write_atomically(path, buffer.getvalue())


def _curve(name: str, colour: str, profile: MemoryProfile, columns: Sequence[int | None], strength: float) -> Curve:
    """Where the model has no step of a column it keeps what it had."""
    sizes, size = [], 0
    for step in columns:
        size = size if step is None else profile.timeline[step].live_bytes
        sizes.append(float(size))
    peak = list(columns).index(profile.peak_step)
    return Curve(name, colour, tuple(sizes), peak, step_place(profile.timeline[profile.peak_step]), strength)


def _stage_sections(c: Comparison, columns: Sequence[tuple[int | None, int | None]]) -> list[Section]:
    of_teacher, of_student = (stage_of_steps(p, c.stages) for p in (c.teacher, c.student))
    stages = [of_teacher[t] if t is not None else of_student[s or 0] for t, s in columns]
    regions = list(regions_of_steps(c.student.timeline))
    rows, forms = stage_rows(c), [str(region.form) for region in c.patches.regions] if c.patches else []
    keys = [(None, stage) if s is None else (regions[s], stage) for (_, s), stage in zip(columns, stages, strict=True)]
    found = []
    for region, first, end in runs([(-1, stage) if region is None else (region, 0) for region, stage in keys]):
        row = rows[stages[first]]
        detail = _grids(row.teacher_grid, row.student_grid) if region[0] < 0 else f"in {forms[region[0]]}"
        found.append(Section(row.label, detail, first, end))
    return found


def _grids(teacher: Sequence[int], student: Sequence[int]) -> str:
    if tuple(teacher) == tuple(student):
        return format_shape(teacher)
    return f"{format_shape(teacher)} → {format_shape(student)}"


def _draw(
    figure: Figure,
    axes: Axes,
    title: str,
    curves: Sequence[Curve],
    sections: Sequence[Section],
    limit: int | None = None,
    legend_above: bool = False,
) -> None:
    largest = max(max(curve.size) for curve in curves)
    unit, sign = _unit(largest)
    for curve in curves:
        _draw_curve(axes, curve, unit)
    if limit is not None:
        _draw_limit(axes, limit, unit)
    _style(axes, title, sign, len(curves[0].size), max(largest, limit or 0) / unit)
    _name_sections(figure, axes, sections)
    if len(curves) > 1:
        corner = {"loc": "lower right", "bbox_to_anchor": (1, 1)} if legend_above else {"loc": "upper right"}
        axes.legend(**corner, frameon=False, ncols=3, fontsize=10)
    _annotate_peaks(axes, curves, unit, limit or 0)


def _unit(largest: float) -> tuple[int, str]:
    return (MIB, "MiB") if largest >= SMALLEST_MIB * MIB else (KIB, "KiB")


def _draw_curve(axes: Axes, curve: Curve, unit: int) -> None:
    edges = range(len(curve.size) + 1)
    heights = [size / unit for size in curve.size]
    axes.stairs(heights, edges, fill=True, color=curve.colour, alpha=curve.strength, linewidth=0)
    axes.stairs(heights, edges, color=curve.colour, linewidth=1.4, label=curve.name)


def _draw_limit(axes: Axes, limit: int, unit: int) -> None:
    axes.axhline(limit / unit, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.3, label=f"budget {format_bytes(limit)}")


def _style(axes: Axes, title: str, sign: str, count: int, largest: float) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.set_ylabel(f"activations alive ({sign})", color=INK)
    axes.set_xlim(0, count)
    axes.set_ylim(0, 1.22 * (largest or 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def _name_sections(figure: Figure, axes: Axes, sections: Sequence[Section]) -> None:
    """Boundaries as faint lines; below each section its name, on end where it is narrow, none where that is no use."""
    from matplotlib.transforms import blended_transform_factory

    for section in sections[1:]:
        axes.axvline(section.first, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xticks([])
    place = blended_transform_factory(axes.transData, axes.transAxes)
    labels = [
        axes.text((s.first + s.end) / 2, -0.02, f"{s.name}\n{s.detail}".strip(), transform=place,
                  ha="center", va="top", fontsize=9, color=INK, linespacing=1.4)
        for s in sections
    ]  # fmt: skip
    figure.draw_without_rendering()
    per_column = axes.get_window_extent().width / axes.get_xlim()[1]
    for label, section in zip(labels, sections, strict=True):
        _fit(label, section.name, (section.end - section.first) * per_column)


def _fit(label: Text, name: str, room: float) -> None:
    if label.get_window_extent().width <= room - 6:
        return
    label.set_text(shorten(name, LONGEST_NAME))
    if label.get_window_extent().width > room - 6:
        label.set_rotation(90)
        label.set_visible(label.get_window_extent().width <= room + 2)


def _annotate_peaks(axes: Axes, curves: Sequence[Curve], unit: int, limit: int) -> None:
    """A dot at each peak, and its size and module above it, clear of the budget's line."""
    width = len(curves[0].size)
    for curve in curves:
        x, y = curve.peak + 0.5, curve.size[curve.peak] / unit
        right = x < width * 0.7
        name = f"{curve.name}: " if len(curves) > 1 else ""
        axes.plot([x], [y], marker="o", markersize=5, color=curve.colour, markeredgecolor="white", zorder=5)
        axes.annotate(
            f"{name}{format_bytes(curve.size[curve.peak])} at {shorten(curve.place, LONGEST_PLACE)}",
            (x, max(y, limit / unit)), xytext=(8 if right else -8, 7), textcoords="offset points",
            ha="left" if right else "right", fontsize=10, color=INK, zorder=6,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
