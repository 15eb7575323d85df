"""Patches: every network run in parts at several budgets, its outputs, bytes and time beside those of the plain one."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
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
from redistill.internal.caching import cached_method
from redistill.internal.files import write_atomically
from redistill.internal.tables import Table

BUDGETS = ("2x", "4x", "8x")
UNET = "redistill:ddpm_unet"
ROUNDS, SECONDS = 5, 2.0
"""Times are taken for at least so many rounds, and so long."""
SHIFT = 1.0
"""Of batch norms, in units of their maps' deviation: about that of EfficientNet-Lite0 trained on ImageNet."""
COLUMNS = (
    "network", "budget", "extra MACs", "regions", "parts", "time", "error float32", "rounding", "error float64",
    "measured",
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
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many networks, the smallest first")
    parser.add_argument(
        "--limit-seconds", type=positive, metavar="N", help="processor seconds after which a network's budgets are left"
    )
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="torchvision|diffusers")
    specs = [s for s in all_specs() if not given.only or any(part in s for part in given.only)][: given.limit]
    table = Table(COLUMNS)
    for spec in tqdm(specs, unit="network", leave=False):
        for row in _kept(given.folder, spec, given.limit_seconds or math.inf):
            table.add(*(row[column] for column in COLUMNS))
            tqdm.write(table.last, sys.stderr)
    table.notes += [
        "Convention deploy. time: eager, one thread, the median of the ratios of calls taken in turn.",
        "error: the largest difference from the plain network's outputs over their largest value.",
        "rounding: the plain network's own, in float32 against float64.",
        "measured: bytes under the meter minus those predicted, convention graph.",
    ]
    sys.stdout.write(f"{table}\n")
    return 0


def all_specs() -> list[str]:
    """Every torchvision classifier and segmenter, and a UNet: those that compute least first."""
    names = [spec for spec in torchvision_specs() if not spec.startswith("backbone:")]
    return sorted([*names, UNET], key=_work)


def _work(spec: str) -> float:
    """Giga multiply-accumulates, as torchvision says."""
    if spec == UNET:
        return 6.0
    (weights, *_) = torchvision.models.get_model_weights(spec.removeprefix("torchvision:"))
    return float(weights.meta["_ops"])


def _kept(folder: str | None, spec: str, seconds: float) -> list[dict[str, str]]:
    """The rows of one network, read from the folder if it has them."""
    if folder is None:
        return examine(spec, seconds)
    path = Path(folder) / f"{short(spec).replace(':', '_')}.json"
    if path.is_file():
        found: list[dict[str, str]] = json.loads(path.read_text())
        return found
    rows = examine(spec, seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(rows, indent=1).encode())
    return rows


def examine(spec: str, seconds: float = math.inf) -> list[dict[str, str]]:
    """One network at every budget that is begun in time; a network that cannot be traced is one row that says why."""
    ends = time.process_time() + seconds
    model, inputs = build(spec)
    settle(model, inputs)
    try:
        analysis = analyze(model, inputs, check=False)
    except RedistillError as error:
        return [_row(short(spec), "-", **{"extra MACs": f"not traced: {str(error)[:60]}"})]
    plain = Plain(model, inputs)
    rows: list[dict[str, str]] = []
    for budget in BUDGETS:  # what is out of reach at one is so at the next
        known = rows[-1]["extra MACs"] if rows and not rows[-1]["regions"] else ""
        if not known and time.process_time() > ends:
            known = f"not begun within {seconds:.0f} s"
        figures = {"extra MACs": known} if known else _figures(analysis, plain, budget)
        rows.append(_row(short(spec), budget, **figures))
        gc.collect()
    return rows


@torch.no_grad()
def settle(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Make random weights behave as trained ones do: outputs that tell inputs apart, and rounding that does not grow.

    Batch norms get the statistics of noise; with those they begin with, outputs are little more than a last bias. They
    are also given shifts: where half of each map is cut off after every norm, rounding doubles every few layers.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.constant_(norm.bias, SHIFT)
    if norms:
        model.train()(*(torch.cat([x, torch.randn_like(x) if x.is_floating_point() else x]) for x in inputs))
        model.eval()


class Plain:
    """A network run whole, and what it yields in each type, computed once."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.model = model
        self.inputs = inputs

    @cached_method
    def outputs(self, dtype: torch.dtype) -> list[Tensor]:
        """Every tensor of its output in ``dtype``."""
        return _outputs(self.model, self.inputs, dtype)

    @cached_property
    def rounding(self) -> float:
        """How far its own outputs in float32 are from those in float64."""
        pairs = zip(self.outputs(torch.float32), self.outputs(torch.float64), strict=True)
        return max(float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)

    def difference(self, student: Student, dtype: torch.dtype) -> float:
        """The largest difference of a student's outputs over the largest value, computed in ``dtype``."""
        pairs = zip(_outputs(student, self.inputs, dtype), self.outputs(dtype), strict=True)
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@torch.no_grad()
def _outputs(network: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    output = copy.deepcopy(network).to(dtype).eval()(*given)
    return [x for x in tree_leaves(dict(output) if isinstance(output, dict) else output) if isinstance(x, Tensor)]


def _row(network: str, budget: str, **figures: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"network": network, "budget": budget} | figures


def _figures(analysis: Analysis, plain: Plain, budget: str) -> dict[str, str]:
    try:
        student = make_student(analysis, Request.of(budget, levers="patches")).eval()
    except InfeasibleBudgetError:
        best = best_patches(teacher_segmenter(analysis, MAX_EXTRA_MACS), precision=0.05)
        ratio = analysis.profile.peak_bytes / best.peak_bytes
        return {"extra MACs": f"at best {ratio:.2f}x at {best.extra_macs / max(analysis.profile.macs, 1):+.1%}"}
    patches = student.patches
    assert patches is not None
    single, double = (plain.difference(student, dtype) for dtype in (torch.float32, torch.float64))
    return {
        "extra MACs": f"{patches.extra_macs / max(analysis.profile.macs, 1):+.2%}",
        "regions": str(len(patches.regions)),
        "parts": ", ".join(str(region.form) for region in patches.regions),
        "time": f"{time_ratio(student, plain.model, plain.inputs):.2f}",
        "error float32": f"{single:.0e}",
        "rounding": f"{plain.rounding:.0e}",
        "error float64": f"{double:.0e}",
        "measured": f"{measure(student, plain.inputs) - profile(student, plain.inputs, 'graph').peak_bytes:+,}",
    }


def time_ratio(student: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How many times as long the student takes: the median over rounds in which both run in turn."""
    with torch.no_grad():
        for network in (student, model):
            network(*inputs)
        ratios: list[float] = []
        ends = time.process_time() + SECONDS
        while len(ratios) < ROUNDS or time.process_time() < ends:
            ratios.append(_seconds(student, inputs) / _seconds(model, inputs))
        return statistics.median(ratios)


def _seconds(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> float:
    started = time.process_time()
    function(*inputs)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(run(main))
