"""Int8 in the interpreter for microcontrollers: its arena of networks and of their students, with outputs compared."""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill import transform
from redistill.cli import positive
from redistill.errors import ExportError
from redistill.evidence.networks import short
from redistill.evidence.patches import settle
from redistill.export import PreparedModel, make_int8, prepare
from redistill.export.exporting import compare, quantization_error
from redistill.export.formats import format_named
from redistill.export.microcontroller import InterpreterArena, measure_arena
from redistill.internal.tables import Table
from redistill.models import default_input_shapes, load_model

NETWORKS = (("redistill:ds_cnn", "pool"), ("torchvision:mobilenet_v2", "patches"))
"""Networks, and what makes their students."""
SIDE = 96
CALIBRATION, TRIALS = 16, 4
COLUMNS = (
    "network",
    "arena",
    "records",
    "activations",
    "predicted",
    "zeros around parts",
    "else",
    "rounding",
    "parity",
    "outputs",
)


@dataclass(frozen=True)
class Case:
    """A network as an int8 file, run and measured.

    Attributes:
        outputs: what the file gives for each trial, [TRIALS, ...].
    """

    name: str
    prepared: PreparedModel
    outputs: Tensor
    parity: float
    arena: InterpreterArena


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, run and measure every network and its student."""
    parser = argparse.ArgumentParser(prog="python -m redistill.evidence microcontroller", description=__doc__)
    parser.add_argument("names", nargs="*", help="only networks whose name contains one of these")
    parser.add_argument("--side", type=positive, default=SIDE, help="of pictures, in pixels (default: %(default)s)")
    parser.add_argument("--budget", default="4x", help="of the students (default: %(default)s)")
    given = parser.parse_args(arguments)
    format_named("tflite")
    warnings.filterwarnings("ignore", module="torchvision")
    table = Table(COLUMNS)
    chosen = [case for case in NETWORKS if not given.names or any(name in case[0] for name in given.names)]
    for spec, levers in tqdm(chosen, unit="network", leave=False):
        plain, student = examine(spec, levers, given.side, given.budget)
        table.add(*_row(plain, ""))
        table.add(*_row(student, difference(plain, student) if levers == "patches" else ""))
        gc.collect()
    table.notes += [
        "Bytes, int8, random weights, batch norms settled on noise. arena = records + activations, as the interpreter "
        "reports it on this machine.",
        "predicted: convention deploy; activations = predicted + zeros around parts + else, to the byte.",
        "rounding: of our int8 network beside the float one, relative to the largest output.",
        f"parity: of the interpreter beside our int8 network, relative, on {TRIALS} inputs.",
        "outputs: of the network in parts beside the whole one, in the interpreter.",
    ]
    sys.stdout.write(f"{table}\n")
    return 0


def examine(spec: str, levers: str, side: int, budget: str) -> tuple[Case, Case]:
    """A network and its student; one in parts has the scales of the network that is run whole."""
    torch.manual_seed(0)
    model, example = network_at(spec, side)
    images = tuple(torch.randn(CALIBRATION, *example.shape))
    plain = make_int8(prepare(model, example), images)
    student = prepare(transform(model, example, budget, levers=levers, taps="none").eval(), example)
    name = f"{short(spec)} {'x'.join(map(str, example.shape[1:]))}"
    rounded = make_int8(student, images, plain.int8 if levers == "patches" else None)
    return measure(name, plain), measure(f"{name}, {budget} by {levers}", rounded)


def network_at(spec: str, side: int) -> tuple[nn.Module, Tensor]:
    """A network whose outputs say something, and an example input: of this side where it takes colour pictures."""
    model = load_model(spec, "random")
    channels, *sides = default_input_shapes(spec, model)[0]
    example = torch.randn(1, channels, *([side, side] if channels == 3 else sides))
    settle(model, (example,))
    return model.eval(), example


def measure(name: str, prepared: PreparedModel) -> Case:
    """Convert a network, run it and ask the interpreter.

    Raises:
        ExportError: outputs that are not the network's, or say nothing, as those of a file without its weights.
    """
    chosen = format_named("tflite")
    data = chosen.build(prepared).data
    parity = compare(prepared, chosen, data)
    outputs = torch.stack([chosen.run(data, (x,))[0] for x in prepared.calibration[:TRIALS]])
    if parity.alike:
        raise ExportError(f"{name}: the network gives one value throughout, which proves nothing")
    return Case(name, prepared, outputs, parity.relative_error, measure_arena(data))


def difference(plain: Case, student: Case) -> str:
    """How far a student's outputs are from its network's, relative to the largest."""
    if torch.equal(plain.outputs, student.outputs):
        return "equal to the bit"
    return f"{float((plain.outputs - student.outputs).abs().max() / plain.outputs.abs().max()):.1e}"


def _row(case: Case, outputs: str) -> Iterator[str]:
    arena = case.arena
    yield case.name
    yield from (f"{size:,}" for size in (arena.total, arena.persistent, arena.activations))
    predicted = case.prepared.profile.peak_bytes
    yield f"{predicted:,}"
    yield f"{arena.zeros:,}"
    yield f"{arena.activations - arena.zeros - predicted:,}"
    yield f"{quantization_error(case.prepared):.1e}"
    yield f"{case.parity:.1e}"
    yield outputs
