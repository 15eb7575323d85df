"""The benchmark as a picture: peaks of memory, work and size as the teacher's share, and speed with its spread."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.axes import Axes

from redistill.internal.text import KIB, MIB, SMALLEST_MIB, format_bytes
from redistill.report.plots import FAINT, INK, STUDENT, TEACHER, make_figure, write_png
from redistill.studies.benchmark.backends import BACKENDS
from redistill.studies.benchmark.results import Benchmark

SIZE = (1400, 520)  # pixels
HALF = 0.36  # height of a bar; a row has the height 1
LEGEND = (0.5, -0.08)  # below the axis
MEASURED, ARENA, ALLOCATED = "measured", "ExecuTorch arena", "GPU allocator"


def plot(result: Benchmark, path: str | os.PathLike[str], size: tuple[int, int] = SIZE) -> None:
    """Write a PNG of ``size`` pixels.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    figure = make_figure(size)
    panels = figure.subplots(1, 3 if result.timings else 2, width_ratios=(4, 3, 4)[: 3 if result.timings else 2])
    figure.suptitle(
        f"{result.title}  {result.input}: student beside teacher", x=0.01, ha="left", fontsize=13, color=INK
    )
    _draw_peaks(panels[0], result)
    _draw_shares(panels[1], result)
    if result.timings:
        _draw_speed(panels[2], result)
    write_png(figure, path)


def _draw_peaks(axes: Axes, result: Benchmark) -> None:
    rows = _peaks(result)
    largest = max(teacher for _, teacher, _ in rows)
    unit, sign = (MIB, "MiB") if largest >= SMALLEST_MIB * MIB else (KIB, "KiB")
    for row, (_, teacher, student) in enumerate(rows):
        for size, at, colour in ((teacher, row - HALF / 2, TEACHER), (student, row + HALF / 2, STUDENT)):
            axes.barh(at, size / unit, HALF, color=colour)
            axes.annotate(format_bytes(size), (size / unit, at), (4, 0), textcoords="offset points", va="center",
                          fontsize=9, color=INK)  # fmt: skip
    axes.barh(0, 0, color=TEACHER, label="teacher")
    axes.barh(0, 0, color=STUDENT, label="student")
    axes.set_xlim(0, 1.28 * largest / unit)
    _style(axes, f"Peak activation memory ({sign})", [name for name, _, _ in rows])
    axes.legend(loc="upper center", bbox_to_anchor=LEGEND, frameon=False, fontsize=10, ncols=2)


def _peaks(result: Benchmark) -> list[tuple[str, int, int]]:
    teacher, student = result.teacher, result.student
    rows = [(name, teacher.peaks[name], student.peaks[name]) for name in teacher.peaks]
    rows.append((MEASURED, teacher.measured, student.measured))
    if teacher.arena is not None and student.arena is not None:
        rows.append((ARENA, teacher.arena, student.arena))
    if teacher.device is not None and student.device is not None:
        rows.append((ALLOCATED, teacher.device.allocated, student.device.allocated))
    return rows


def _draw_shares(axes: Axes, result: Benchmark) -> None:
    """Student as a percentage of the teacher, the RED blocks' part hatched."""
    teacher, student, red = result.teacher, result.student, result.red
    rows = (
        ("MACs", student.macs / max(teacher.macs, 1), red.macs),
        ("parameters", student.parameters / max(teacher.parameters, 1), red.parameters),
        ("weights' file", student.file_bytes / teacher.file_bytes, red.weight_bytes),
    )
    for row, (_, share, part) in enumerate(rows):
        kept = 100 * share * (1 - part)
        axes.barh(row, kept, 2 * HALF, color=STUDENT)
        axes.barh(row, 100 * share * part, 2 * HALF, left=kept, color="#F6D5BF", edgecolor=STUDENT, hatch="////",
                  linewidth=0, label="in RED blocks" if row == 0 and part else None)  # fmt: skip
        axes.annotate(f"{100 * share:.0f} %", (100 * share, row), (4, 0), textcoords="offset points", va="center",
                      fontsize=10, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.axvline(100, color=TEACHER, linewidth=1.4, linestyle=(0, (5, 3)), label="teacher", zorder=0)
    axes.set_xlim(0, 1.25 * max(100.0, *(100 * share for _, share, _ in rows)))
    _style(axes, "Student, % of the teacher", [name for name, _, _ in rows])
    axes.legend(loc="upper center", bbox_to_anchor=LEGEND, frameon=False, fontsize=10, ncols=2)


def _draw_speed(axes: Axes, result: Benchmark) -> None:
    for row, timing in enumerate(result.timings):
        low, high = timing.quartiles
        axes.barh(row, timing.ratio, 2 * HALF, color=STUDENT, alpha=0.85)
        axes.plot((low, high), (row, row), color=INK, linewidth=1.6, marker="|", markersize=8)
        times = f"{timing.ratio:.2f}x   {timing.teacher.median:.1f} → {timing.student.median:.1f} ms"
        axes.annotate(times, (max(high, timing.ratio), row), (6, 0), textcoords="offset points", va="center",
                      fontsize=9, color=INK)  # fmt: skip
    axes.axvline(1, color=TEACHER, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.set_xlim(0, 1.75 * max(max(t.ratio, t.quartiles[1]) for t in result.timings))
    names = [f"{BACKENDS[t.backend].title}\nbatch {t.batch}" for t in result.timings]
    _style(axes, "Times faster (medians; line: quartiles)", names)


def _style(axes: Axes, title: str, names: Sequence[str]) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
