"""The arena that ExecuTorch plans, to the byte, beside the one that is predicted; and the file runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from tqdm import tqdm

from redistill import InfeasibleBudgetError, transform
from redistill.compiler.analysis import analyze
from redistill.compiler.choosing import smallest
from redistill.evidence.networks import build, short
from redistill.export import prepare
from redistill.export.executorch import certify, run_program
from redistill.export.parity import FLOAT_BOUND, check_parity
from redistill.internal.tables import Table
from redistill.student import record_of

NETWORKS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "redistill:ddpm_unet",
)
BUDGET = "4x"


@dataclass(frozen=True)
class Case:
    """A network whose arena is planned."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    reorder: bool = False


def run(names: Sequence[str] = ()) -> Table:
    """Predicted and planned bytes of each network and its student under ``arena`` and ``deploy``, and the parity.

    ``greedy`` is ExecuTorch's default, ``suite`` the best of all that it has; neither lays one result over another.
    """
    table = Table(("network", "convention", "predicted", "greedy", "suite", "ours", "ours - predicted", "parity"))
    specs = [spec for spec in NETWORKS if not names or any(name in spec for name in names)]
    for spec in tqdm(specs, unit="network", leave=False):
        for case in cases(spec):
            for convention in ("arena", "deploy"):
                table.add(case.name, convention, *plan(case, convention))
                gc.collect()
    table.notes.append(
        "bytes; parity: max relative error of the file, run in the ExecuTorch runtime, to the network in eager mode"
    )
    return table


def cases(spec: str) -> Iterator[Case]:
    """A network and its student at 4x, or at the best that can be had; a UNet also in the order of least memory."""
    model, inputs = build(spec)
    yield Case(short(spec), model, inputs)
    if "unet" in spec:
        yield Case(f"{short(spec)} reordered", model, inputs, True)
    budget, student = student_of(model, inputs)
    yield Case(f"{short(spec)} {budget}", student, inputs)


def student_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, nn.Module]:
    """The student at 4x; where no plan reaches that, the one of least memory."""
    try:
        return BUDGET, transform(model, inputs, BUDGET, taps="auto").eval()
    except InfeasibleBudgetError:
        _, best = smallest(analyze(model, inputs, check=False))
        student = transform(model, inputs, best.peak_bytes, taps="auto")
        ratio = record_of(student).teacher_profile.peak_bytes / record_of(student).plan.peak_bytes
        return f"{ratio:.2f}x (its best)", student.eval()


def plan(case: Case, convention: str) -> tuple[str, ...]:
    """Predicted, ExecuTorch's own plans, ours, the difference explained, and the parity of the file as it runs."""
    prepared = prepare(case.model, case.inputs, convention, case.reorder)
    found = certify(prepared)
    parity = check_parity(
        lambda inputs: run_program(found.data, inputs), prepared.reference, [case.inputs], FLOAT_BOUND, case.name
    )
    own = found.own_plans
    sizes = (found.account.predicted, own["greedy"], own["suite"], found.account.planned)
    return (*(f"{size:,}" for size in sizes), str(found.account), f"{parity.relative_error:.1e}")
