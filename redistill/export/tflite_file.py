"""A ``.tflite`` file as a graph that can be read, changed and written again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from redistill.memory.lifetimes import Buffer, live_bytes

ALIGNMENT = 16
"""Where the interpreter wants constants to begin, in bytes."""
IDENTIFIER = b"TFL3"
TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
}
"""Names of the schema's TensorType."""


class TfliteFile:
    """The one graph of a file: operations in execution order, tensors by number.

    Attributes:
        operations: as the schema's objects; ``inputs`` and ``outputs`` are numbers of tensors.
        tensors: as the schema's objects.
    """

    def __init__(self, data: bytes) -> None:
        from tflite_micro import runtime

        self.model = runtime.convert_bytearray_to_object(data)
        self.graph = self.model.subgraphs[0]

    @property
    def operations(self) -> list[Any]:
        """Operations in execution order."""
        found: list[Any] = self.graph.operators
        return found

    @property
    def tensors(self) -> list[Any]:
        """Tensors by number."""
        found: list[Any] = self.graph.tensors
        return found

    def name(self, operation: Any) -> str:
        """What an operation is, such as ``conv_2d``."""
        code = self.model.operatorCodes[operation.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        names = {value: name for name, value in vars(_schema().BuiltinOperator).items() if isinstance(value, int)}
        return str(names.get(number, number)).lower()

    def named(self, *names: str) -> Iterator[Any]:
        """The operations of these names."""
        return (operation for operation in self.operations if self.name(operation) in names)

    def maker(self, tensor: int) -> Any:
        """The operation that yields a tensor; None for inputs and constants."""
        return next((o for o in self.operations if tensor in o.outputs), None)

    def users(self, tensor: int) -> list[Any]:
        """The operations that read a tensor."""
        return [o for o in self.operations if tensor in o.inputs]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Its shape."""
        return tuple(map(int, self.tensors[tensor].shape))

    def constant(self, tensor: int) -> Any:
        """The values of a constant as an array."""
        about = self.tensors[tensor]
        raw = np.asarray(self.model.buffers[about.buffer].data, dtype=np.uint8)
        return raw.view(TYPES[about.type]).reshape(self.shape(tensor))

    def add_constant(self, like: int, values: Any) -> int:
        """A constant with the scales of another; returns its number."""
        made = copy.copy(self.tensors[like])
        made.shape, made.buffer = list(values.shape), self._store(values)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def replace(self, old: int, new: int) -> None:
        """Let all that read a tensor read another."""
        for operation in self.users(old):
            operation.inputs = [new if tensor == old else tensor for tensor in operation.inputs]

    def without(self, copies: Sequence[Any]) -> list[Any]:
        """The operations as they would be without these, whose readers then read what these did."""
        source = {int(copied.outputs[0]): copied.inputs[0] for copied in copies}
        kept = [copy.copy(o) for o in self.operations if int(o.outputs[0]) not in source]
        for operation in kept:
            operation.inputs = [source.get(int(tensor), tensor) for tensor in operation.inputs]
        return kept

    def drop_unread(self) -> None:
        """Take out operations whose results nothing reads, and tensors of no operation."""
        kept = {int(t) for t in self.graph.outputs}
        for operation in reversed(list(self.operations)):
            if kept.isdisjoint(operation.outputs):
                self.operations.remove(operation)
            else:
                kept.update(int(t) for t in operation.inputs)
        kept.update(int(t) for t in (*self.graph.inputs, *(t for o in self.operations for t in o.outputs)))
        self._renumber({old: new for new, old in enumerate(sorted(kept - {-1}))})

    def _renumber(self, numbers: dict[int, int]) -> None:
        for holder in (self.graph, *self.operations):
            holder.inputs = [numbers.get(int(t), -1) for t in holder.inputs]
            holder.outputs = [numbers[int(t)] for t in holder.outputs]
        for signature in self.model.signatureDefs or ():
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = numbers[entry.tensorIndex]
        self.graph.tensors = [self.tensors[old] for old in numbers]

    def activations(self, operations: Sequence[Any] | None = None) -> list[Buffer]:
        """Every activation with the operation that makes it, its bytes and its lifetime in steps."""
        steps = self.operations if operations is None else operations
        last = len(steps) - 1
        born, dies, maker = {int(t): 0 for t in self.graph.inputs}, {int(t): last for t in self.graph.outputs}, {}
        for step, operation in enumerate(steps):
            for tensor in map(int, operation.outputs):
                born[tensor], maker[tensor] = step, self.name(operation)
            for tensor in map(int, (*operation.inputs, *operation.outputs)):
                dies[tensor] = max(dies.get(tensor, 0), step)
        return [self._buffer(tensor, maker.get(tensor, "input"), born[tensor], dies.get(tensor, 0)) for tensor in born]

    def _buffer(self, tensor: int, maker: str, born: int, dies: int) -> Buffer:
        shape, kind = self.shape(tensor), TYPES[self.tensors[tensor].type]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return Buffer(maker, "", shape, kind, size, born, dies, storage=tensor)

    def live(self, operations: Sequence[Any] | None = None) -> list[int]:
        """Bytes of activations alive at each step, of its operations or of others on its tensors."""
        steps = self.operations if operations is None else operations
        return live_bytes(self.activations(steps), max(1, len(steps)))

    def add_metadata(self, name: str, values: Any) -> None:
        """Numbers under a name, which readers that do not know it pass over."""
        entry = _schema().MetadataT()
        entry.name, entry.buffer = name, self._store(values)
        self.model.metadata = [*(self.model.metadata or ()), entry]

    def _store(self, values: Any) -> int:
        buffer = _schema().BufferT()
        buffer.data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def pack(self) -> bytes:
        """The file's bytes."""
        import flatbuffers

        self.model.buffers = self._used_buffers()
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _used_buffers(self) -> list[Any]:
        """Buffers that something refers to, aligned; the first is empty by the schema's rule."""
        holders = [*self.tensors, *(self.model.metadata or ())]
        numbers = {old: new for new, old in enumerate(sorted({0, *(h.buffer for h in holders)}))}
        for holder in {id(h): h for h in holders}.values():
            holder.buffer = numbers[holder.buffer]
        return [_aligned(self.model.buffers[old]) for old in numbers]


def _aligned(buffer: Any) -> Any:
    """A buffer that begins where the interpreter wants it to, which the schema's own class leaves to chance."""
    schema = _schema()
    made = schema.BufferT()
    made.data = buffer.data

    def pack(builder: Any) -> Any:
        content = bytes(bytearray(made.data))
        builder.StartVector(1, len(content), ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)

    if made.data is not None:
        made.Pack = pack
    return made


def _schema() -> Any:
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated

    return schema_py_generated
