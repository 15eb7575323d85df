"""The lossless line: to which budget patches alone suffice, and what pooling must do beyond, with and without them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from redistill import RedistillError
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.levers import teacher_segmenter
from redistill.compiler.patching import best_patches
from redistill.compiler.pipeline import make_student
from redistill.compiler.request import Request
from redistill.evidence.networks import build
from redistill.internal.tables import Table

NETWORKS = (
    "mobilenet_v2", "mnasnet1_0", "efficientnet_b0", "resnet18", "resnet50", "vgg16", "densenet121", "regnet_y_400mf",
)  # fmt: skip
FREE, MOST = 0.01, 0.25
"""Extra multiply-accumulates: as good as none, and the most that are allowed by default."""
BUDGETS = ("8x", "16x")


def run(names: Sequence[str] = ()) -> Table:
    """Each network without taps under ``deploy``; ``names`` restricts the list to those that contain one of them."""
    columns = ("network", f"free to (+{FREE:.0%})", f"with +{MOST:.0%}", *(f"{b}: {w}" for b in BUDGETS for w in WAYS))
    table = Table(columns)
    for name in tqdm([n for n in NETWORKS if not names or any(part in n for part in names)], unit="network"):
        analysis = analyze(*build(f"torchvision:{name}"))
        reached = (_reached(analysis, most) for most in (FREE, MOST))
        kept = (_kept(analysis, budget, levers) for budget in BUDGETS for levers in WAYS.values())
        table.add(name, *reached, *kept)
        tqdm.write(table.last, sys.stderr)
    table.notes.append("Multiply-accumulates kept of the teacher's own, and those that patches compute more.")
    return table


WAYS = {"pool": ("pool",), "patches, pool": ("patches", "pool")}


def _reached(analysis: Analysis, most: float) -> str:
    best = best_patches(teacher_segmenter(analysis, most))
    return f"{analysis.profile.peak_bytes / best.peak_bytes:.2f}x"


def _kept(analysis: Analysis, budget: str, levers: tuple[str, ...]) -> str:
    try:
        student = make_student(analysis, Request.of(budget, levers=levers, taps="none"))
    except RedistillError:
        return "-"
    factors = ",".join(map(str, student.plan.factors))
    extra = student.patches.extra_macs / analysis.profile.macs if student.patches else 0.0
    more = f" +{extra:.1%}" if extra >= 0.0005 else ""
    return f"{student.plan.macs_kept:.0%}{more} ({factors})"
