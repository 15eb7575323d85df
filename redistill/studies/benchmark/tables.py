"""The benchmark for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redistill.internal.tables import align_columns
from redistill.internal.text import format_bytes, format_count, format_share
from redistill.report.tables import WIDTH
from redistill.studies.benchmark.backends import BACKENDS
from redistill.studies.benchmark.results import Benchmark, Network, seconds_per_image
from redistill.studies.benchmark.timing import PairedTiming, Timing

Row = list[str]


def render(result: Benchmark) -> str:
    """Memory, work and size of both networks; the RED blocks' part; latencies; what was left out and why."""
    sections = (
        _header(result),
        _network_lines(result),
        _red_lines(result),
        _latency_lines(result),
        _image_lines(result),
        _closing_lines(result),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _header(result: Benchmark) -> list[str]:
    return ["  ·  ".join((result.title, f"input {result.input}", result.weights)), "─" * WIDTH]


def _network_lines(result: Benchmark) -> list[str]:
    teacher, student = result.teacher, result.student
    rows = [["batch 1", "teacher", "student", "ratio"], ["Peak activation memory", "", "", ""]]
    rows += [
        _row(f"  {convention} convention", teacher.peaks[convention], student.peaks[convention], format_bytes)
        for convention in teacher.peaks
    ]
    rows += _measured_rows(teacher, student)
    rows.append(_row("Multiply-accumulates", teacher.macs, student.macs, format_count))
    if result.steps is not None:
        rows.append(_row("  per image", teacher.macs * result.steps, student.macs * result.steps, format_count))
    rows.append(_row("Parameters", teacher.parameters, student.parameters, format_count))
    rows.append(_row("File of the weights", teacher.file_bytes, student.file_bytes, format_bytes))
    return align_columns(rows, "<>>>")


def _measured_rows(teacher: Network, student: Network) -> list[Row]:
    """The meter sees a teacher as ``eager`` counts it and a student, which is a graph, as both do."""
    rows = [_row("  measured while running", teacher.measured, student.measured, format_bytes)]
    if teacher.arena is not None and student.arena is not None:
        rows.append(_row("  ExecuTorch's planned arena", teacher.arena, student.arena, format_bytes))
    if teacher.device is not None and student.device is not None:
        ours, theirs = student.device, teacher.device
        rows.append(_row("  GPU allocator's peak", theirs.allocated, ours.allocated, format_bytes))
        rows.append(_row("    of it workspace", theirs.workspace, ours.workspace, format_bytes))
    return rows


def _row(name: str, teacher: int, student: int, write: Callable[[float], str]) -> Row:
    return [name, write(teacher), write(student), f"{teacher / student:.2f}x" if student else ""]


def _red_lines(result: Benchmark) -> list[str]:
    red = result.red
    if not red.parameters:
        return ["RED blocks  none in this student"]
    parts = (
        f"{format_share(red.parameters, 1)} of the parameters",
        f"{format_share(red.macs, 1)} of the MACs",
        f"{format_share(red.weight_bytes, 1)} of the weights' bytes",
    )
    return [f"RED blocks  {', '.join(parts)}; memory while one runs is {format_share(red.peak, 1)} of the peak"]


def _latency_lines(result: Benchmark) -> list[str]:
    if not result.timings:
        return []
    rows = [
        ["", "", "teacher", "", "", "student", "", "", "teacher/student", ""],
        ["backend", "batch", *("median", "p95", "min") * 2, "of medians", "quartiles"],
    ]
    lines = align_columns([*rows, *map(_latency_cells, result.timings)], "<>>>>>>>>>")
    first = result.timings[0]
    pairs = sorted({len(t.teacher.milliseconds) for t in result.timings})
    counted = f"{pairs[0]} to {pairs[-1]}" if len(pairs) > 1 else str(pairs[0])
    about = f"Latency in ms, called in turn: {counted} pairs of calls; threads: {first.threads}; {result.machine}"
    return [about, *lines]


def _latency_cells(timing: PairedTiming) -> Row:
    low, high = timing.quartiles
    return [
        BACKENDS[timing.backend].title,
        str(timing.batch),
        *_times(timing.teacher),
        *_times(timing.student),
        f"{timing.ratio:.2f}x",
        f"{low:.2f} - {high:.2f}",
    ]


def _times(timing: Timing) -> Row:
    return [f"{value:.2f}" for value in (timing.median, timing.p95, timing.minimum)]


def _image_lines(result: Benchmark) -> list[str]:
    """Seconds an image of a denoiser takes."""
    steps = result.steps
    if steps is None or not result.timings:
        return []
    rows = [["backend", "batch", "teacher", "student"]]
    rows += [
        [BACKENDS[t.backend].title, str(t.batch)]
        + [f"{seconds_per_image(of, t.batch, steps):.2f} s" for of in (t.teacher, t.student)]
        for t in result.timings
    ]
    return [f"Time per image, {steps} steps", *align_columns(rows, "<>>>")]


def _closing_lines(result: Benchmark) -> Sequence[str]:
    skipped = [f"Left out    {reason}" for reason in result.skipped.values()]
    return [*skipped, *(f"Note        {note}" for note in result.notes)]
