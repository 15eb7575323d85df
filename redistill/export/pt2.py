"""torch.export: the ``.pt2`` archive that ``torch.export.load`` reads on any machine with PyTorch."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redistill.export.preparation import PreparedModel, tensors_of, trace_program

METADATA = "redistill.json"


def build(prepared: PreparedModel) -> bytes:
    """The archive, with the metadata as a file in it."""
    buffer = io.BytesIO()
    torch.export.save(trace_program(prepared), buffer, extra_files={METADATA: json.dumps(prepared.metadata)})
    return buffer.getvalue()


def run(data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Load the archive and run it."""
    with torch.no_grad():
        return tensors_of(torch.export.load(io.BytesIO(data)).module()(*inputs))


def read_metadata(data: bytes) -> dict[str, Any]:
    """What an archive says of itself."""
    extra = {METADATA: ""}
    torch.export.load(io.BytesIO(data), extra_files=extra)
    found: dict[str, Any] = json.loads(extra[METADATA])
    return found
