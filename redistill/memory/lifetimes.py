"""Lifetimes: which buffer is alive from which step to which, under a convention, and the profile of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from redistill.errors import ModelError
from redistill.internal.text import format_bytes
from redistill.memory.conventions import Convention
from redistill.memory.recording import ITEM_SIZES, GraphRecord


@dataclass(frozen=True)
class Buffer:
    """Activation memory alive from step ``born`` to step ``dies``, both included."""

    node: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    born: int
    dies: int
    is_input: bool = False
    storage: int = -1


@dataclass(frozen=True)
class Step:
    """One operation of the timeline and the bytes alive while it runs."""

    node: str
    module: str
    live_bytes: int
    transient_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True)
class MemoryProfile:
    """Where activation memory goes, step by step, under ``convention``; all sizes in bytes.

    Example:
        >>> import torch, redistill
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> found = redistill.profile(model, torch.zeros(1, 3, 16, 16))
        >>> found.peak_bytes, found.peak_node, [buffer.shape for buffer in found.live]
        (11264, '_0', [(1, 8, 16, 16), (1, 3, 16, 16)])
    """

    convention: Convention
    timeline: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    lower_bound: int | None
    parameters: int = 0
    dtype: str | None = None

    def __repr__(self) -> str:
        peak = f"{format_bytes(self.peak_bytes)} ({self.convention}) at {self.peak_node}"
        return f"<{type(self).__name__} {peak}, {len(self.timeline)} steps, {self.macs:,} MACs>"

    @property
    def peak_step(self) -> int:
        """Index of the first step that reaches the peak."""
        return max(range(len(self.timeline)), key=lambda t: (self.timeline[t].live_bytes, -t))

    @property
    def peak_bytes(self) -> int:
        """The largest number of activation bytes alive at once."""
        return self.timeline[self.peak_step].live_bytes

    @property
    def peak_node(self) -> str:
        """Name of the operation at the peak."""
        return self.timeline[self.peak_step].node

    @property
    def live(self) -> tuple[Buffer, ...]:
        """What is alive at the peak, largest first."""
        return self.alive_at(self.peak_step)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run (the whole batch)."""
        return sum(step.macs for step in self.timeline)

    def alive_at(self, step: int) -> tuple[Buffer, ...]:
        """The buffers alive at ``step``, largest first; what an operation needs within itself comes as one more.

        Example:
            >>> import torch, redistill
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
            >>> found = redistill.profile(model, torch.zeros(1, 3, 16, 16))
            >>> [buffer.bytes for buffer in found.alive_at(0)]
            [3072]
        """
        alive = [b for b in self.buffers if b.born <= step <= b.dies]
        now = self.timeline[step]
        if now.transient_bytes:
            alive.append(Buffer(now.node, now.module, (), "transient", now.transient_bytes, step, step))
        return tuple(sorted(alive, key=lambda b: (-b.bytes, b.born)))


def check_dtype(dtype: str | None) -> None:
    """Raise ModelError unless activations can be counted in that type."""
    if dtype is not None and dtype not in ITEM_SIZES:
        raise ModelError(f"unknown dtype {dtype!r}; one of {', '.join(ITEM_SIZES)}")


def lifetimes(record: GraphRecord, convention: Convention) -> tuple[Buffer, ...]:
    """The buffers of ``record`` and their lifetimes under ``convention``."""
    found = _as_written(record) if convention.as_written else _functional(record, convention)
    if not convention.pins_input:
        return found
    last = len(record.operations) - 1
    return tuple(replace(b, born=0, dies=last) if b.is_input else b for b in found)


def _functional(record: GraphRecord, convention: Convention) -> tuple[Buffer, ...]:
    values = functional_values(record, convention.folds_batch_norm)
    owner = _overwrite(record, values) if convention.overwrites else list(range(len(values)))
    dies = [value.dies for value in values]
    for index, value in enumerate(values):
        dies[owner[index]] = max(dies[owner[index]], value.dies)
    return tuple(
        _buffer(record, value.storage, value.born, dies[index])
        for index, value in enumerate(values)
        if owner[index] == index
    )


def timeline(record: GraphRecord, buffers: Sequence[Buffer], convention: Convention) -> tuple[Step, ...]:
    """Live bytes at each operation of ``record``."""
    steps = []
    for operation, live in zip(record.operations, live_bytes(buffers, len(record.operations)), strict=True):
        transient = operation.transient_bytes if convention.counts_transients else 0
        steps.append(Step(operation.node, operation.module, live + transient, transient, operation.macs))
    return tuple(steps)


def live_bytes(buffers: Sequence[Buffer], steps: int) -> list[int]:
    """Bytes alive at each of ``steps`` steps: a running sum of births and deaths."""
    change = [0] * (steps + 1)
    for buffer in buffers:
        change[buffer.born] += buffer.bytes
        change[buffer.dies + 1] -= buffer.bytes
    return list(accumulate(change[:-1]))


def _buffer(record: GraphRecord, storage: int, born: int, dies: int) -> Buffer:
    s = record.storages[storage]
    return Buffer(s.node, s.module, s.shape, s.dtype, s.bytes, born, dies, s.is_input, storage)


def _as_written(record: GraphRecord) -> tuple[Buffer, ...]:
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    for step, operation in enumerate(record.operations):
        for storage in (*operation.creates, *operation.reads):
            born.setdefault(storage, step)
            dies[storage] = step
        for storage in operation.keeps:
            born[storage], dies[storage] = step, len(record.operations) - 1
    return tuple(_buffer(record, s, born[s], dies[s]) for s in sorted(born))


@dataclass
class Value:
    """A result of the graph with in-place writes undone and batch norms folded."""

    storage: int
    born: int
    dies: int
    readers: list[int]


def functional_values(record: GraphRecord, folds: bool = True) -> list[Value]:
    """The values of ``record`` in order of birth; a folded batch norm yields its convolution's value."""
    values: list[Value] = []
    current: dict[int, int] = {}
    for step, operation in enumerate(record.operations):
        for index in dict.fromkeys(current[s] for s in operation.reads):
            values[index].dies = step
            values[index].readers.append(step)
        if folds and operation.folds and len(operation.reads) == 1:
            current.update(dict.fromkeys(operation.creates, current[operation.reads[0]]))
            continue
        for storage in (*operation.creates, *operation.mutates):
            current[storage] = len(values)
            values.append(Value(storage, step, step, []))
    return values


def _overwrite(record: GraphRecord, values: list[Value]) -> list[int]:
    """For each value the one whose buffer it takes over: an elementwise result may overwrite an input that dies."""
    owner = list(range(len(values)))
    dying: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        if not record.storages[value.storage].is_input:
            dying.setdefault(value.dies, []).append(index)
    for index, value in enumerate(values):
        if record.operations[value.born].overwrites:
            size = record.storages[value.storage].bytes
            for source in dying.get(value.born, ()):
                if source < index and record.storages[values[source].storage].bytes == size:
                    owner[index] = owner[source]
                    break
    return owner
