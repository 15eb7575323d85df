"""Reports for a terminal: plain text, about a hundred columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from redistill.internal.tables import align_columns
from redistill.internal.text import format_bytes, format_count, format_shape, format_share, shorten
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import MemoryProfile
from redistill.report.data import Comparison, StageRow, group_steps, red_macs, stage_rows
from redistill.report.ladder import find_ladder
from redistill.report.phrases import (
    buffer_kind,
    buffer_place,
    describe_budget,
    describe_convention,
    describe_extra,
    describe_order,
    describe_proof,
    describe_verdict,
    step_place,
)

WIDTH = 100
MOST_LIVE = 8  # lines of what is alive at a peak
MOST_STEPS = 8  # lines of the steps that need most
BAR = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"


def render(comparison: Comparison) -> str:
    """A comparison as text: verdict, stages, taps, what is alive at both peaks, operations, proofs, notes."""
    c = comparison
    sections = (
        _header(c.title, c.input, c.dtype, c.convention, c.weights),
        _verdict(c),
        _ladder(c),
        _stages(stage_rows(c)),
        _taps(c),
        _live(c.teacher, "Alive at the teacher's peak"),
        _live(c.student, "Alive at the student's peak"),
        _facts(c),
        _notes(c.notes),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def render_profile(profile: MemoryProfile, title: str) -> str:
    """One profile as text: peak, what is alive there, the timeline by module, the steps that need most."""
    sections = (
        _header(title, "", profile.dtype, profile.convention, ""),
        _profile_facts(profile),
        _live(profile, "Alive at the peak"),
        _timeline(profile),
        _top_steps(profile),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def draw_bar(part: float, whole: float, width: int = BAR) -> str:
    """A bar of at most ``width`` characters, in steps of an eighth of one.

    >>> draw_bar(1, 2, 3)
    '█▌'
    """
    eighths = round(8 * width * part / whole) if whole else 0
    return (EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def _header(title: str, input: str, dtype: str | None, convention: Convention, weights: str) -> list[str]:
    facts = [f"input {input}" if input else "", f"activations {dtype}" if dtype else "", weights]
    words = textwrap.wrap(describe_convention(convention), WIDTH)
    return ["  ·  ".join([title, *filter(None, facts)]), *words, "─" * WIDTH]


def _verdict(c: Comparison) -> list[str]:
    line = describe_budget(c.teacher.peak_bytes, c.student.peak_bytes, c.plan.limit)
    lines = [f"Peak activation memory  {line}  [{describe_verdict(c.student.peak_bytes, c.plan.limit)}]"]
    if c.plan.peak_bytes != c.student.peak_bytes:
        lines.append(f"The plan had promised {format_bytes(c.plan.peak_bytes)}.")
    return lines


def _stages(rows: Sequence[StageRow]) -> list[str]:
    head = [
        ["", "", "grid", "", "", "peak", "", "MACs"],
        ["stage", "teacher", "student", "factor", "teacher", "student", "teacher", "student"],
    ]
    lines = align_columns([*head, *map(_stage_cells, rows), _total_cells(rows)], "<>>>>>>>")
    rule = "─" * max(map(len, lines))
    return [*lines[:2], rule, *lines[2:-1], rule, lines[-1]]


def _stage_cells(row: StageRow) -> list[str]:
    return [
        shorten(row.label),
        format_shape(row.teacher_grid),
        format_shape(row.student_grid),
        _factor(row),
        format_bytes(row.teacher_peak),
        format_bytes(row.student_peak),
        format_count(row.teacher_macs),
        format_count(row.student_macs),
    ]


def _factor(row: StageRow) -> str:
    if row.boundary:
        return "-"
    return f"{row.factor} fixed" if row.fixed else str(row.factor)


def _total_cells(rows: Sequence[StageRow]) -> list[str]:
    peaks = [max(row.teacher_peak for row in rows), max(row.student_peak for row in rows)]
    macs = [sum(row.teacher_macs for row in rows), sum(row.student_macs for row in rows)]
    return ["whole network", "", "", "", *map(format_bytes, peaks), *map(format_count, macs)]


def _taps(c: Comparison) -> list[str]:
    if not c.taps:
        return []
    rows = [[t.student, "-", t.teacher, format_shape(t.grid), f"{t.channels} channels"] for t in c.taps]
    return ["Taps  student - teacher, each with a RED block in the student", *align_columns(rows, "<<<>>", indent=2)]


def _live(profile: MemoryProfile, heading: str) -> list[str]:
    place = step_place(profile.timeline[profile.peak_step])
    counted = f"{format_bytes(profile.peak_bytes)} in step {profile.peak_step + 1} of {len(profile.timeline)}, {place}"
    rows = [
        [format_bytes(b.bytes), format_share(b.bytes, profile.peak_bytes), shorten(buffer_place(b)), buffer_kind(b)]
        for b in profile.live[:MOST_LIVE]
    ]
    rest = profile.live[MOST_LIVE:]
    if rest:
        size = sum(b.bytes for b in rest)
        rows.append([format_bytes(size), format_share(size, profile.peak_bytes), f"{len(rest)} more", ""])
    return [f"{heading}  {counted}", *align_columns(rows, ">><<", indent=2)]


def _facts(c: Comparison) -> list[str]:
    macs, kept = f"{format_count(c.teacher.macs)} -> {format_count(c.student.macs)}", f"{100 * c.plan.macs_kept:.1f} %"
    red = format_count(red_macs(c.student))
    extra = describe_extra(c.patches.extra_macs if c.patches else 0)
    rows = [
        ["MACs", f"{macs}, {kept} kept, {red} in RED blocks{extra}"],
        ["Parameters", f"{format_count(c.teacher.parameters)} -> {format_count(c.student.parameters)}"],
        ["Plan", f"{', '.join(map(str, c.plan.factors))}; {describe_proof(c.plan, c.patches)}"],
        ["Objective", c.plan.objective],
        ["Teacher", describe_order(c.teacher)],
        ["Student", describe_order(c.student)],
        ["Took", f"{c.seconds:.1f} s"],
    ]
    return align_columns(rows, "<<")


def _ladder(c: Comparison) -> list[str]:
    """From the teacher's peak down."""
    rows = [[rung.lever, format_bytes(rung.bytes), rung.cost] for rung in find_ladder(c)]
    rows += [["", "", shorten(str(region), 60)] for region in (c.patches.regions if c.patches else ())]
    return ["Levers  what each leads to, and what it costs", *align_columns(rows, "<><", indent=2)]


def _notes(notes: Sequence[str]) -> list[str]:
    lines = [textwrap.fill(note, WIDTH, initial_indent="  - ", subsequent_indent="    ") for note in notes]
    return ["Notes", *lines] if notes else []


def _profile_facts(profile: MemoryProfile) -> list[str]:
    peak = profile.timeline[profile.peak_step]
    rows = [
        ["Peak", f"{format_bytes(profile.peak_bytes)} in step {profile.peak_step + 1} of {len(profile.timeline)}"],
        ["At", step_place(peak)],
        ["Order", describe_order(profile)],
        ["MACs", format_count(profile.macs)],
        ["Parameters", format_count(profile.parameters)],
    ]
    return align_columns(rows, "<<")


def _timeline(profile: MemoryProfile) -> list[str]:
    peak = profile.peak_step
    rows = [
        [
            shorten(g.name, 28),
            str(g.last - g.first + 1),
            format_bytes(g.peak_bytes),
            draw_bar(g.peak_bytes, profile.peak_bytes) + (" peak" if g.first <= peak <= g.last else ""),
        ]
        for g in group_steps(profile)
    ]
    return ["Timeline  module, steps, most bytes alive", *align_columns(rows, "<>><", indent=2)]


def _top_steps(profile: MemoryProfile) -> list[str]:
    order = sorted(range(len(profile.timeline)), key=lambda t: (-profile.timeline[t].live_bytes, t))[:MOST_STEPS]
    rows = [
        [
            f"step {t + 1}",
            format_bytes(step.live_bytes),
            format_share(step.live_bytes, profile.peak_bytes),
            step_place(step),
        ]
        for t, step in ((t, profile.timeline[t]) for t in order)
    ]
    return ["Steps that need most", *align_columns(rows, "<>><", indent=2)]
