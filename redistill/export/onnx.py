"""ONNX: for interchange, and for ONNX Runtime. It has no planned arena: no memory figure is to be had from it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from redistill.errors import ExportError
from redistill.export.preparation import PreparedModel, trace_program
from redistill.export.source_map import path_of
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly

METADATA = "redistill"


def build(prepared: PreparedModel) -> bytes:
    """The model as bytes, the metadata in its ``metadata_props``.

    Raises:
        ExportError: an operator that the ONNX exporter does not know.
    """
    program = trace_program(prepared)
    try:
        with quietly():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"ONNX cannot hold this network: {_reason(error, program)}") from error
    assert exported is not None
    model = exported.model_proto
    model.metadata_props.add(key=METADATA, value=json.dumps(prepared.metadata))
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


def _reason(error: BaseException, program: ExportedProgram) -> str:
    """The innermost cause, in one line, with the module that calls the operator it names."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = reason(error, 200)
    named = re.search(r"<OpOverload\(op='\w+\.(\w+)'", text)
    users = [n for n in program.graph.nodes if named and n.op == "call_function" and named[1] in str(n.target)]
    return f"{text} (in {path_of(users[0])})" if users else text
