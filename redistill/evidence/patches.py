"""Patches: every network run in parts at several budgets, its outputs, bytes and time beside those of the plain one."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from redistill import RedistillError, Student, measure, profile
from redistill.cli import positive, run
from redistill.compiler.analysis import Analysis, analyze
from redistill.compiler.levers import teacher_segmenter
from redistill.compiler.patching import best_patches
from redistill.compiler.pipeline import make_student
from redistill.compiler.request import MAX_EXTRA_MACS, Request
from redistill.errors import InfeasibleBudgetError
from redistill.evidence.networks import build, short, torchvision_specs
from redistill.internal.files import write_atomically
from redistill.internal.tables import Table

BUDGETS = ("2x", "4x", "8x")
UNET = "redistill:ddpm_unet"
ROUNDS = 5
COLUMNS = (
    "network", "budget", "extra MACs", "regions", "parts", "time", "error float32", "error float64", "measured",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine networks one by one; those that a folder holds already are not examined again."""
    parser = argparse.ArgumentParser(prog="python -m redistill.evidence patches", description=__doc__)
    parser.add_argument(
        "--folder", metavar="DIR", help="keep each network's figures here, and go on from what is there"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="networks whose name contains one of these"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many networks")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="torchvision|diffusers")
    specs = [s for s in all_specs() if not given.only or any(part in s for part in given.only)][: given.limit]
    table = Table(COLUMNS)
    for spec in tqdm(specs, unit="network", leave=False):
        for row in _kept(given.folder, spec):
            table.add(*(row[column] for column in COLUMNS))
    table.notes += [
        "Convention deploy. time: eager, one thread, the median of the ratios of calls taken in turn.",
        "error: the largest difference from the plain network's outputs over their largest value.",
        "measured: bytes under the meter minus those predicted, convention graph.",
    ]
    sys.stdout.write(f"{table}\n")
    return 0


def all_specs() -> Iterator[str]:
    """Every torchvision classifier and segmenter, and a UNet."""
    yield from (spec for spec in torchvision_specs() if not spec.startswith("backbone:"))
    yield UNET


def _kept(folder: str | None, spec: str) -> list[dict[str, str]]:
    """The rows of one network, read from the folder if it has them."""
    if folder is None:
        return examine(spec)
    path = Path(folder) / f"{short(spec).replace(':', '_')}.json"
    if path.is_file():
        found: list[dict[str, str]] = json.loads(path.read_text())
        return found
    rows = examine(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(rows, indent=1).encode())
    return rows


def examine(spec: str) -> list[dict[str, str]]:
    """One network at every budget; a network that cannot be traced is one row that says why."""
    model, inputs = build(spec)
    try:
        analysis = analyze(model, inputs, check=False)
    except RedistillError as error:
        return [_row(short(spec), "-", **{"extra MACs": f"not traced: {str(error)[:60]}"})]
    rows: list[dict[str, str]] = []
    for budget in BUDGETS:  # what is out of reach at one is so at the next
        known = rows[-1]["extra MACs"] if rows and not rows[-1]["regions"] else ""
        figures = {"extra MACs": known} if known else _figures(analysis, model, inputs, budget)
        rows.append(_row(short(spec), budget, **figures))
        gc.collect()
    return rows


def _row(network: str, budget: str, **figures: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"network": network, "budget": budget} | figures


def _figures(analysis: Analysis, model: nn.Module, inputs: tuple[Tensor, ...], budget: str) -> dict[str, str]:
    try:
        student = make_student(analysis, Request.of(budget, levers="patches")).eval()
    except InfeasibleBudgetError:
        best = best_patches(teacher_segmenter(analysis, MAX_EXTRA_MACS), precision=0.05)
        ratio = analysis.profile.peak_bytes / best.peak_bytes
        return {"extra MACs": f"at best {ratio:.2f}x at {best.extra_macs / max(analysis.profile.macs, 1):+.1%}"}
    patches = student.patches
    assert patches is not None
    single, double = (difference(student, model, inputs, dtype) for dtype in (torch.float32, torch.float64))
    return {
        "extra MACs": f"{patches.extra_macs / max(analysis.profile.macs, 1):+.2%}",
        "regions": str(len(patches.regions)),
        "parts": ", ".join(str(region.form) for region in patches.regions),
        "time": f"{time_ratio(student, model, inputs):.2f}",
        "error float32": f"{single:.0e}",
        "error float64": f"{double:.0e}",
        "measured": f"{measure(student, inputs) - profile(student, inputs, 'graph').peak_bytes:+,}",
    }


def difference(student: Student, model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> float:
    """The largest difference between both networks' outputs over the largest value, computed in ``dtype``."""
    ours, theirs = (copy.deepcopy(network).to(dtype).eval() for network in (student, model))
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        pairs = list(zip(_tensors(ours(*given)), _tensors(theirs(*given)), strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(dict(output) if isinstance(output, dict) else output) if isinstance(x, Tensor)]


def time_ratio(student: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How many times as long the student takes: the median over rounds in which both run in turn."""
    with torch.no_grad():
        for network in (student, model):
            network(*inputs)
        return statistics.median(_seconds(student, inputs) / _seconds(model, inputs) for _ in range(ROUNDS))


def _seconds(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> float:
    started = time.process_time()
    function(*inputs)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(run(main))
