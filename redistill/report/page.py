"""One self-contained HTML page: verdict, an interactive timeline of what is alive when, stages, taps and notes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from redistill.internal.files import write_atomically
from redistill.internal.text import format_bytes, format_count, format_shape
from redistill.memory.lifetimes import MemoryProfile
from redistill.report.data import (
    Comparison,
    Group,
    StageRow,
    align_steps,
    group_steps,
    red_macs,
    stage_of_steps,
    stage_rows,
    versions,
)
from redistill.report.ladder import find_ladder
from redistill.report.phrases import (
    buffer_kind,
    buffer_place,
    describe_convention,
    describe_extra,
    describe_order,
    describe_proof,
    describe_reduction,
    describe_verdict,
    step_place,
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, and perhaps a bar behind it (``share``), a group's colour, or a badge."""

    text: str
    share: float | None = None
    group: int | None = None
    badge: str = ""


@dataclass(frozen=True)
class Figure:
    """A key figure: what it is, its value, and a line that explains it."""

    label: str
    value: str
    detail: str = ""


def write_page(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison; it needs no network.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    write_atomically(path, _comparison_page(comparison).encode())


def write_profile_page(profile: MemoryProfile, title: str, path: str | os.PathLike[str]) -> None:
    """Write the page of one profile; it needs no network.

    Raises:
        RedistillError: ``path`` cannot be written.
    """
    write_atomically(path, _profile_page(profile, title).encode())


def _comparison_page(c: Comparison) -> str:
    rows = stage_rows(c)
    met = {None: "plain", True: "good", False: "bad"}[c.is_met]
    facts = [c.input, f"activations {c.dtype}" if c.dtype else "", c.weights]
    return fill(
        "page.html",
        kind="comparison",
        title=escape(c.title),
        subtitle=escape("  ·  ".join(filter(None, facts))),
        convention=escape(describe_convention(c.convention)),
        headline=_headline(c.teacher.peak_bytes, c.student.peak_bytes),
        verdict=f'<span class="verdict {met}">{escape(describe_verdict(c.student.peak_bytes, c.plan.limit))}</span>',
        sentence=escape(
            "peak activation memory, " + describe_reduction(c.teacher.peak_bytes, c.student.peak_bytes, c.plan.limit)
        ),
        figures=_figures(_comparison_figures(c)),
        sections=_ladder_section(c)
        + _stage_section(rows)
        + _tap_section(c)
        + _proof_section(c)
        + _note_section(c.notes),
        footer=footer(f"transformed in {c.seconds:.1f} s"),
        data=embed(_comparison_data(c, rows)),
    )


def _profile_page(profile: MemoryProfile, title: str) -> str:
    groups = group_steps(profile)
    return fill(
        "page.html",
        kind="profile",
        title=escape(title),
        subtitle=escape(f"activations {profile.dtype}" if profile.dtype else ""),
        convention=escape(describe_convention(profile.convention)),
        headline=f"<b>{format_bytes(profile.peak_bytes)}</b>",
        verdict="",
        sentence=escape(f"peak activation memory, at {step_place(profile.timeline[profile.peak_step])}"),
        figures=_figures(_profile_figures(profile)),
        sections=_group_section(groups, profile),
        footer=footer(),
        data=embed(_profile_data(profile, groups)),
    )


def fill(template: str, **parts: str) -> str:
    """A template of this package with every ``{{name}}`` replaced, once: what is put in is not looked at again.

    ``{{style}}`` stands for the style sheet that all pages share.
    """
    folder = files("redistill.report")
    text, style = (folder.joinpath(name).read_text(encoding="utf-8") for name in (template, "style.html"))
    known = {"style": style.strip(), **parts}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: known[match[1]], text)


def embed(data: Mapping[str, Any]) -> str:
    """JSON that no tag can end: ``<`` is written as an escape."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _headline(teacher_peak: int, student_peak: int) -> str:
    return f'<span>{format_bytes(teacher_peak)}</span> <i aria-label="to">→</i> <b>{format_bytes(student_peak)}</b>'


def _comparison_figures(c: Comparison) -> list[Figure]:
    red, extra = red_macs(c.student), c.patches.extra_macs if c.patches else 0
    limit = "none set" if c.plan.limit is None else format_bytes(c.plan.limit)
    spare = "" if c.plan.limit is None else _spare(c.plan.limit - c.student.peak_bytes)
    return [
        Figure("Peak memory", f"{c.ratio:.2f}x", "less than the teacher needs"),
        Figure("Budget", limit, spare),
        Figure(
            "MACs kept", f"{100 * c.plan.macs_kept:.1f} %",
            f"{format_count(c.teacher.macs)} → {format_count(c.student.macs)}"
            + (f", {format_count(red)} in RED blocks" if red else "")
            + describe_extra(extra),
        ),
        Figure(
            "Parameters", format_count(c.student.parameters),
            _change(c.student.parameters - c.teacher.parameters),
        ),
        Figure("Pooling", " ".join(f"÷{f}" for f in c.plan.factors), f"objective: {c.plan.objective}"),
    ]  # fmt: skip


def _spare(spare: int) -> str:
    return f"{format_bytes(spare)} to spare" if spare >= 0 else f"{format_bytes(-spare)} over it"


def _change(more: int) -> str:
    if more == 0:
        return "as many as the teacher"
    return f"{format_count(abs(more))} {'more' if more > 0 else 'fewer'} than the teacher"


def _profile_figures(profile: MemoryProfile) -> list[Figure]:
    bound = "not known" if profile.lower_bound is None else format_bytes(profile.lower_bound)
    optimal = profile.lower_bound is not None and profile.peak_bytes <= profile.lower_bound
    return [
        Figure("Peak", format_bytes(profile.peak_bytes), f"step {profile.peak_step + 1} of {len(profile.timeline)}"),
        Figure("Lower bound", bound, "the order is optimal" if optimal else "over all orders of execution"),
        Figure("MACs", format_count(profile.macs)),
        Figure("Parameters", format_count(profile.parameters)),
    ]


def _figures(figures: Sequence[Figure]) -> str:
    return "".join(
        f"<div><dt>{escape(f.label)}</dt><dd><b>{escape(f.value)}</b><small>{escape(f.detail)}</small></dd></div>"
        for f in figures
    )


def _stage_section(rows: Sequence[StageRow]) -> str:
    head = ["Stage", "Grid", "Factor", "Teacher's peak", "Student's peak", "Teacher's MACs", "Student's MACs"]
    most = max(max(row.teacher_peak, row.student_peak) for row in rows) or 1
    work = max(max(row.teacher_macs, row.student_macs) for row in rows) or 1
    body = [
        [
            Cell(row.label, group=index),
            Cell(_grids(row)),
            Cell("" if row.boundary else f"÷{row.factor}", badge="fixed" if row.fixed and not row.boundary else ""),
            Cell(format_bytes(row.teacher_peak), row.teacher_peak / most),
            Cell(format_bytes(row.student_peak), row.student_peak / most),
            Cell(format_count(row.teacher_macs), row.teacher_macs / work),
            Cell(format_count(row.student_macs), row.student_macs / work),
        ]
        for index, row in enumerate(rows)
    ]
    about = "A stage is a part of the network that shares one grid; its peak is the most memory alive while it runs."
    return section("Stages", about, table("Stages of teacher and student", head, body))


def _ladder_section(c: Comparison) -> str:
    rungs = find_ladder(c)
    most = max(rung.bytes for rung in rungs) or 1
    body = [[Cell(r.lever), Cell(format_bytes(r.bytes), r.bytes / most), Cell(r.cost)] for r in rungs]
    for region in c.patches.regions if c.patches else ():
        body.append([Cell(""), Cell(""), Cell(str(region))])
    about = "From the teacher's peak down: what each lever leads to, and what it costs."
    return section("Levers", about, table("Levers", ["Lever", "Peak", "Cost"], body, "words"))


def _grids(row: StageRow) -> str:
    teacher, student = format_shape(row.teacher_grid), format_shape(row.student_grid)
    return teacher if teacher == student else f"{teacher} → {student}"


def _tap_section(c: Comparison) -> str:
    if not c.taps:
        return ""
    head = ["Student", "Teacher", "Grid", "Channels"]
    body = [[Cell(t.student), Cell(t.teacher), Cell(format_shape(t.grid)), Cell(str(t.channels))] for t in c.taps]
    about = "Places of equal grid where the student learns from the teacher, through a RED block that stays in it."
    return section("Taps", about, table("Taps", head, body, "words"))


def _proof_section(c: Comparison) -> str:
    entries = [
        ("Plan", describe_proof(c.plan, c.patches)),
        ("Teacher", describe_order(c.teacher)),
        ("Student", describe_order(c.student)),
    ]
    if c.plan.peak_bytes != c.student.peak_bytes:
        entries.append(("Promised", f"the plan had promised {format_bytes(c.plan.peak_bytes)}"))
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return section("Proofs", "", f'<dl class="facts">{body}</dl>')


def _note_section(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return section("Notes", "", f"<ul>{items}</ul>") if notes else ""


def _group_section(groups: Sequence[Group], profile: MemoryProfile) -> str:
    work = max(g.macs for g in groups) or 1
    body = [
        [
            Cell(g.name, group=index),
            Cell(str(g.last - g.first + 1)),
            Cell(format_bytes(g.peak_bytes), g.peak_bytes / max(profile.peak_bytes, 1)),
            Cell(format_count(g.macs), g.macs / work),
        ]
        for index, g in enumerate(groups)
    ]
    return section("Modules", describe_order(profile), table("Modules", ["Module", "Steps", "Peak", "MACs"], body))


def section(title: str, about: str, body: str) -> str:
    """A section of the page; ``body`` is markup."""
    return f"<section><h2>{escape(title)}</h2><p class='about'>{escape(about)}</p>{body}</section>"


def table(caption: str, head: Sequence[str], body: Sequence[Sequence[Cell]], kind: str = "numbers") -> str:
    """A table that scrolls sideways where it has no room."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body)
    return (
        f'<div class="scroll"><table class="{kind}"><caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.group is not None:
        return f'<th scope="row"><i class="swatch" data-group="{cell.group}"></i>{text}</th>'
    badge = f' <span class="badge">{escape(cell.badge)}</span>' if cell.badge else ""
    bar = "" if cell.share is None else f'<i class="bar"><i style="width:{100 * cell.share:.1f}%"></i></i>'
    return f"<td>{text}{badge}{bar}</td>"


def footer(*facts: str) -> str:
    """What the page was made with."""
    made = versions()
    return escape("  ·  ".join([f"Redistill {made['redistill']}", f"torch {made['torch']}", *facts]))


def _comparison_data(c: Comparison, rows: Sequence[StageRow]) -> dict[str, Any]:
    return {
        "groups": [{"name": row.label, "detail": _grids(row)} for row in rows],
        "models": [
            _model("teacher", c.teacher, stage_of_steps(c.teacher, c.stages)),
            _model("student", c.student, stage_of_steps(c.student, c.stages)),
        ],
        "columns": align_steps(c.teacher, c.student),
        "limit": c.plan.limit,
    }


def _profile_data(profile: MemoryProfile, groups: Sequence[Group]) -> dict[str, Any]:
    of_steps = [index for index, g in enumerate(groups) for _ in range(g.first, g.last + 1)]
    return {
        "groups": [{"name": g.name, "detail": ""} for g in groups],
        "models": [_model("memory", profile, of_steps)],
        "columns": [[step] for step in range(len(profile.timeline))],
        "limit": None,
    }


def _model(name: str, profile: MemoryProfile, groups: Sequence[int]) -> dict[str, Any]:
    """One model for the page's script; a buffer has the colour of the group that made it."""
    return {
        "name": name,
        "peak": profile.peak_step,
        "steps": [
            {"place": step_place(s), "live": s.live_bytes, "transient": s.transient_bytes, "group": group}
            for s, group in zip(profile.timeline, groups, strict=True)
        ],
        "buffers": [
            {
                "place": buffer_place(b), "kind": buffer_kind(b), "bytes": b.bytes,
                "born": b.born, "dies": b.dies, "group": groups[b.born],
            }
            for b in profile.buffers
        ],
    }  # fmt: skip
