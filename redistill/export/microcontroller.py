"""The interpreter for microcontrollers: opened, and asked what it reserves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redistill.export.tflite_file import TfliteFile
from redistill.internal.silence import standard_error

ROOM = 64 * 2**20
"""Bytes that the interpreter is given, beside four times the file."""


@dataclass(frozen=True)
class InterpreterArena:
    """What TensorFlow Lite Micro reserves for a file, in bytes.

    Attributes:
        total: the arena that it uses, as it reports it: the two parts together.
        activations: the part for activations and scratch (``head``).
        persistent: the part for its own records of tensors and operations (``tail``).
        live: the most bytes of activations alive at once in the file's graph; the rest is scratch and gaps.
        zeros: how many of them there are for copies of maps with zeros around them.
        alive: these activations, as operation and bytes.
    """

    total: int
    activations: int
    persistent: int
    live: int
    zeros: int
    alive: tuple[tuple[str, int], ...]


def measure_arena(data: bytes) -> InterpreterArena:
    """What the interpreter reserves by its own report, and what the file's graph needs alive at once."""
    with standard_error() as said:
        open_interpreter(data).print_allocations()
        report = said()
        parts = {name: int(size) for name, size in re.findall(r"Arena allocation (\w+) (\d+) bytes", report)}
    file = TfliteFile(data)
    live = file.live()
    peak = live.index(max(live))
    zeros = live[peak] - max(file.live(file.without(list(file.named("pad", "padv2")))))
    alive = tuple((b.node, b.bytes) for b in file.activations() if b.born <= peak <= b.dies)
    return InterpreterArena(parts["total"], parts["head"], parts["tail"], live[peak], zeros, alive)


def open_interpreter(data: bytes) -> Any:
    """An interpreter with an arena of more than enough; it reports what it uses of it."""
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(data, arena_size=ROOM + 4 * len(data))


def count_outputs(data: bytes) -> int:
    """How many tensors a file yields."""
    return len(TfliteFile(data).graph.outputs)
