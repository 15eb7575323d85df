"""Reports of memory: as text, JSON, a plot, and one self-contained HTML page."""

from redistill.internal.files import write_atomically
from redistill.internal.text import format_bytes, format_count
from redistill.report.data import (
    Comparison,
    Group,
    StageRow,
    align_steps,
    compare,
    group_steps,
    stage_of_steps,
    stage_rows,
)
from redistill.report.page import write_page, write_profile_page
from redistill.report.phrases import describe_budget, describe_convention
from redistill.report.plain import profile_to_json, to_json
from redistill.report.plots import plot, plot_profile
from redistill.report.tables import render, render_profile

__all__ = [
    "Comparison",
    "Group",
    "StageRow",
    "align_steps",
    "compare",
    "describe_budget",
    "describe_convention",
    "format_bytes",
    "format_count",
    "group_steps",
    "plot",
    "plot_profile",
    "profile_to_json",
    "render",
    "render_profile",
    "stage_of_steps",
    "stage_rows",
    "to_json",
    "write_atomically",
    "write_page",
    "write_profile_page",
]
