"""The interpreter for microcontrollers: opened, and asked what it reserves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from redistill.internal.silence import standard_error
from redistill.memory.lifetimes import Buffer, live_bytes

ROOM = 64 * 2**20
"""Bytes that the interpreter is given, beside four times the file."""
_ITEM_SIZES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8}  # TensorType of the file's schema


@dataclass(frozen=True)
class InterpreterArena:
    """What TensorFlow Lite Micro reserves for a file, in bytes.

    Attributes:
        total: the arena that it uses, as it reports it: the two parts together.
        activations: the part for activations and scratch (``head``).
        persistent: the part for its own records of tensors and operations (``tail``).
        live: the most bytes of activations alive at once in the file's graph; the rest is scratch and gaps.
        alive: these activations, as operation and bytes.
    """

    total: int
    activations: int
    persistent: int
    live: int
    alive: tuple[tuple[str, int], ...]


def measure_arena(data: bytes) -> InterpreterArena:
    """What the interpreter reserves by its own report, and what the file's graph needs alive at once."""
    with standard_error() as said:
        open_interpreter(data).print_allocations()
        report = said()
        parts = {name: int(size) for name, size in re.findall(r"Arena allocation (\w+) (\d+) bytes", report)}
    buffers, steps = _activations(data)
    live = live_bytes(buffers, steps)
    peak = live.index(max(live))
    alive = tuple((b.node, b.bytes) for b in buffers if b.born <= peak <= b.dies)
    return InterpreterArena(parts["total"], parts["head"], parts["tail"], live[peak], alive)


def open_interpreter(data: bytes) -> Any:
    """An interpreter with an arena of more than enough; it reports what it uses of it."""
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(data, arena_size=ROOM + 4 * len(data))


def count_outputs(data: bytes) -> int:
    """How many tensors a file yields."""
    return len(_model(data).subgraphs[0].outputs)


def _model(data: bytes) -> Any:
    from tflite_micro import runtime

    return runtime.convert_bytearray_to_object(data)


def _activations(data: bytes) -> tuple[list[Buffer], int]:
    """The activations of a file with their lifetimes, and the number of its operations."""
    model = _model(data)
    graph, last = model.subgraphs[0], len(model.subgraphs[0].operators) - 1
    born = {int(tensor): 0 for tensor in graph.inputs}
    dies: dict[int, int] = {int(tensor): last for tensor in graph.outputs}
    maker = dict.fromkeys(born, "input")
    for step, operation in enumerate(graph.operators):
        for tensor in map(int, operation.outputs):
            born.setdefault(tensor, step)
            maker.setdefault(tensor, _name(model, operation))
        for tensor in map(int, (*operation.inputs, *operation.outputs)):
            dies[tensor] = max(dies.get(tensor, 0), step)
    return [
        Buffer(maker[t], "", tuple(shape), "", _bytes_of(graph.tensors[t]), born[t], dies[t])
        for t in born
        if (shape := graph.tensors[t].shape) is not None
    ], last + 1


def _bytes_of(tensor: Any) -> int:
    return int(np.prod(tensor.shape)) * _ITEM_SIZES[tensor.type]


def _name(model: Any, operation: Any) -> str:
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    code = model.operatorCodes[operation.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return str(names.get(number, number)).lower()
