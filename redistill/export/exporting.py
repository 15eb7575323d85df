"""Exporting: a prepared model into a file, which is run and compared with its network before it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from redistill.errors import ExportError
from redistill.export.formats import Format, format_named
from redistill.export.parity import FLOAT_BOUND, Parity, check_parity, int8_bound, relative_error
from redistill.export.preparation import PreparedModel, tensors_of, trial_inputs
from redistill.internal.files import write_atomically

if TYPE_CHECKING:
    from redistill.export.accounting import Account
    from redistill.export.microcontroller import InterpreterArena


INT8_TRIALS = 4
"""Calibration batches on which an int8 file is compared."""


@dataclass(frozen=True)
class Exported:
    """A written file and what was found out about it.

    Attributes:
        parity: the file beside the network, run in the file's own runtime.
        account: the planned arena beside the prediction, where the format plans one.
        own_plans: the arenas that ExecuTorch plans by itself, in bytes.
        sidecar: the file of metadata, where the format cannot hold it.
        interpreter: what the interpreter for microcontrollers reserves, where that is the runtime.
        quantization_error: of the int8 network against the float one, relative; None for float files.
    """

    path: Path
    format: str
    size: int
    parity: Parity
    account: Account | None = None
    own_plans: dict[str, int] | None = None
    sidecar: Path | None = None
    interpreter: InterpreterArena | None = None
    quantization_error: float | None = None


def export(prepared: PreparedModel, path: str | Path, format: str = "executorch", force: bool = False) -> Exported:
    """Write ``prepared`` to ``path``: built, run in its own runtime, compared with the network, and only then written.

    Args:
        prepared: from ``prepare``; an int8 one from ``make_int8``.
        path: the file.
        format: ``executorch``, ``executorch-portable``, ``onnx``, ``pt2`` or ``tflite``.
        force: replace a file that exists.

    Raises:
        ExportError: an operator that the format does not know, a file that differs from the network, a file that
            exists already, or a missing package.
    """
    chosen = format_named(format)
    target = Path(path)
    sidecar = target.with_suffix(f"{target.suffix}.json") if not chosen.holds_metadata else None
    check_free(target, sidecar, force=force)
    check_quantized(chosen, prepared.int8 is not None)
    built = chosen.build(prepared)
    parity = compare(prepared, chosen, built.data)
    interpreter = chosen.inspect(built.data) if chosen.inspect is not None else None
    error = None if prepared.int8 is None else quantization_error(prepared)
    write(target, built.data)
    if sidecar is not None:
        write(sidecar, json.dumps(prepared.metadata, indent=2).encode())
    return Exported(
        target, format, len(built.data), parity, built.account, built.own_plans, sidecar, interpreter, error
    )


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, its folder made if need be."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}; choose another --output") from error
    write_atomically(path, content)


def check_free(*paths: Path | None, force: bool) -> None:
    """Raise ExportError if a file exists that must not be replaced."""
    for path in paths:
        if path is not None and path.exists() and not force:
            raise ExportError(f"{path} exists already; choose another --output, or --force to replace it")


def check_quantized(chosen: Format, quantized: bool) -> None:
    """Raise ExportError if the format cannot hold an int8 network."""
    if quantized and not chosen.quantized:
        raise ExportError(
            f"--format {chosen.name} has no int8 kernels; choose --format executorch, onnx, pt2 or tflite for int8"
        )


def compare(prepared: PreparedModel, chosen: Format, data: bytes) -> Parity:
    """Run the file in its own runtime beside what it was made of: the int8 network, or else the float one."""
    reference = prepared.reference if prepared.int8 is None else prepared.int8
    bound = FLOAT_BOUND if prepared.int8 is None else int8_bound(quantization_error(prepared))
    trials = [(x,) for x in prepared.calibration[:INT8_TRIALS]] or trial_inputs(prepared.inputs)
    return check_parity(lambda inputs: chosen.run(data, inputs), reference, trials, bound, chosen.name)


def quantization_error(prepared: PreparedModel) -> float:
    """The int8 network beside the float one on calibration data."""
    assert prepared.int8 is not None
    worst = 0.0
    with torch.no_grad():
        for batch in prepared.calibration[:8]:
            found, expected = prepared.int8(batch), prepared.reference(batch)
            worst = max(worst, relative_error(tensors_of(found), tensors_of(expected)))
    return worst
