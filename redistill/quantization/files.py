"""An int8 network as one file: torch.export's archive, with facts about it inside."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from redistill.errors import QuantizationError
from redistill.internal.files import write_atomically
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly
from redistill.quantization.archive import cleaned
from redistill.quantization.backend import require_backend
from redistill.quantization.lowering import Inputs, export
from redistill.quantization.post_training import as_inputs

FACTS = "redistill.json"


def save_program(
    program: GraphModule, example: Tensor | Inputs, path: str | Path, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write an int8 network to a ``.pt2`` file, whole or not at all.

    Args:
        program: what ``quantize`` or ``FakeQuantized.convert`` returned.
        example: an example input, batch first; the batch size stays free unless the network fixes it.
        path: the file.
        facts: plain data kept inside, such as the normalisation of inputs.
    """
    exported = export(program, tuple(x.cpu() for x in as_inputs(example)))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files={FACTS: json.dumps(dict(facts or {}))})
    write_atomically(path, buffer.getvalue())
    return Path(path)


def load_program(path: str | Path) -> tuple[GraphModule, dict[str, Any]]:
    """The network of such a file, which runs on the CPU, and the facts; nothing in the file is run on the way.

    Raises:
        QuantizationError: the file is missing or not such an archive, holds what could run code, or a package is
            missing.
    """
    require_backend()
    try:
        archive, facts = cleaned(Path(path), FACTS)
        with quietly():
            return torch.export.load(archive).module(check_guards=False), dict(json.loads(facts))
    except QuantizationError:
        raise
    except Exception as error:  # whatever torch makes of the bytes
        raise QuantizationError(f"{path} cannot be read as an int8 network: {reason(error)}") from error
