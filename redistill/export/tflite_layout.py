"""Where activations lie in the interpreter's arena, written into the file where the interpreter would need more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from redistill.export.microcontroller import measure_arena
from redistill.export.tflite_file import ALIGNMENT, TfliteFile
from redistill.memory.packing import pack

PLAN, VERSION = "OfflineMemoryAllocation", 1
"""The metadata from which the interpreter takes offsets: version, graph, how many, and one for each tensor."""
FREE = -1
"""The offset of a tensor that is no activation."""


def lay_out(data: bytes) -> bytes:
    """The file with offsets for its activations, if they then need less than as the interpreter plans by itself."""
    own = measure_arena(data)
    if own.activations == own.live:
        return data
    planned = _with_offsets(data)
    return planned if measure_arena(planned).total < own.total else data


def _with_offsets(data: bytes) -> bytes:
    file = TfliteFile(data)
    aligned = [replace(buffer, bytes=-(-buffer.bytes // ALIGNMENT) * ALIGNMENT) for buffer in file.activations()]
    layout = pack(aligned)
    offsets = np.full(len(file.tensors), FREE, np.int32)
    offsets[[buffer.storage for buffer in layout.buffers]] = layout.offsets
    file.add_metadata(PLAN, np.array([VERSION, 0, len(offsets), *offsets], np.int32))
    return file.pack()
