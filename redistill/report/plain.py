"""Reports as plain values, for JSON: sizes in bytes, grids as lists."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from redistill.memory.lifetimes import Buffer, MemoryProfile
from redistill.planning.taps import Tap
from redistill.report.data import Comparison, StageRow, red_macs, stage_rows, versions
from redistill.report.ladder import find_ladder


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values; sizes in bytes, grids as [height, width]."""
    c, plan = comparison, comparison.plan
    return {
        "title": c.title,
        "input": c.input,
        "weights": c.weights,
        "convention": c.convention.name,
        "dtype": c.dtype,
        "teacher": _summary(c.teacher),
        "student": _summary(c.student) | {"promised_peak_bytes": plan.peak_bytes},
        "ratio": c.ratio,
        "budget": {"bytes": plan.limit, "met": c.is_met},
        "objective": plan.objective,
        "macs_kept": plan.macs_kept,
        "red_macs": red_macs(c.student),
        "extra_macs": c.patches.extra_macs if c.patches else 0,
        "patches": c.patches.to_plain() if c.patches else None,
        "ladder": [asdict(rung) for rung in find_ladder(c)],
        "plan": [_plan_entry(row) for row in stage_rows(c) if not row.boundary],
        "stages": [_row_entry(row) for row in stage_rows(c)],
        "taps": [_tap_entry(tap) for tap in c.taps],
        "certificate": asdict(plan.certificate) if plan.certificate else None,
        "notes": list(c.notes),
        "seconds": c.seconds,
        "versions": versions(),
    }


def profile_to_json(profile: MemoryProfile) -> dict[str, Any]:
    """The whole profile as plain values: summary, timeline and buffers, sizes in bytes."""
    return {
        "convention": profile.convention.name,
        "dtype": profile.dtype,
        **_summary(profile),
        "timeline": [asdict(step) for step in profile.timeline],
        "buffers": [_buffer_entry(buffer) for buffer in profile.buffers],
        "versions": versions(),
    }


def _summary(profile: MemoryProfile) -> dict[str, Any]:
    peak = profile.timeline[profile.peak_step]
    return {
        "peak_bytes": profile.peak_bytes,
        "peak_step": profile.peak_step,
        "peak_node": peak.node,
        "peak_module": peak.module,
        "macs": profile.macs,
        "parameters": profile.parameters,
        "lower_bound": profile.lower_bound,
        "order_is_optimal": None if profile.lower_bound is None else profile.peak_bytes <= profile.lower_bound,
        "live": [_buffer_entry(buffer) for buffer in profile.live],
    }


def _buffer_entry(buffer: Buffer) -> dict[str, Any]:
    entry = asdict(buffer)
    entry["shape"] = list(buffer.shape)
    return entry


def _plan_entry(row: StageRow) -> dict[str, Any]:
    return {
        "stage": row.name,
        "grid": list(row.teacher_grid),
        "student_grid": list(row.student_grid),
        "factor": row.factor,
    }


def _row_entry(row: StageRow) -> dict[str, Any]:
    return asdict(row) | {"teacher_grid": list(row.teacher_grid), "student_grid": list(row.student_grid)}


def _tap_entry(tap: Tap) -> dict[str, Any]:
    return {
        "student": tap.student,
        "teacher": tap.teacher,
        "grid": list(tap.grid),
        "channels": tap.channels,
        "name": tap.name,
    }
