"""ONNX: for interchange, and for ONNX Runtime. It has no planned arena: no memory figure is to be had from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redistill.export.errors import ExportError
from redistill.export.quiet import quietly
from redistill.export.subject import Subject, trace_program

METADATA = "redistill"


def build(subject: Subject) -> bytes:
    """The model as bytes, the metadata in its ``metadata_props``.

    Raises:
        ExportError: an operator that the ONNX exporter does not know.
    """
    program = trace_program(subject)
    try:
        with quietly():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"ONNX cannot hold this network: {_reason(error)}") from error
    assert exported is not None
    model = exported.model_proto
    model.metadata_props.add(key=METADATA, value=json.dumps(subject.metadata))
    return bytes(model.SerializeToString())


def run(data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the model in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    feeds = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, feeds)]


def read_metadata(data: bytes) -> dict[str, Any]:
    """What a model says of itself."""
    import onnx

    model = onnx.load_from_string(data)
    found: dict[str, Any] = json.loads({p.key: p.value for p in model.metadata_props}[METADATA])
    return found


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line; it names the operator and the line of the module that calls it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
