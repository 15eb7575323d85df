"""Small helpers that the tests of memory, order and packing share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill import profile
from redistill.memory.conventions import Convention
from redistill.memory.recording import GraphRecord, Operation, Storage
from redistill.tracing.capture import capture

MAP = 8 * 8 * 4  # bytes of one 8x8 channel in fp32: toy graphs are counted in these


def image(channels: int, batch: int = 1, side: int = 8) -> Tensor:
    return torch.randn(batch, channels, side, side)


def trace(model: nn.Module, *inputs: Tensor, check: bool = True) -> GraphModule:
    return capture(model.eval(), inputs, check=check).graph_module


def maps(model: nn.Module, *inputs: Tensor, conventions: str = "graph arena deploy eager") -> list[float]:
    """Peaks under the named conventions, in 8x8 fp32 channels."""
    return [profile(model.eval(), inputs, convention).peak_bytes / MAP for convention in conventions.split()]


def operation(
    name: str,
    reads: Sequence[int] = (),
    creates: Sequence[int] = (),
    mutates: Sequence[int] = (),
    transient_bytes: int = 0,
    overwrites: bool = False,
    folds: bool = False,
) -> Operation:
    return Operation(name, "", (), tuple(reads), tuple(creates), tuple(mutates), transient_bytes, 0, overwrites, folds)


def storage(name: str, size: int, is_input: bool = False) -> Storage:
    return Storage(name, "", (size,), "int8", size, is_input)


def reordered(record: GraphRecord, positions: Sequence[int]) -> GraphRecord:
    return GraphRecord(tuple(record.operations[i] for i in positions), record.storages)


def legal_orders(record: GraphRecord) -> Iterator[tuple[int, ...]]:
    """Every order in which inputs come first, reads follow births, and in-place writes keep their place."""
    operations = record.operations
    count = len(operations)
    before = [{i for i in range(j) if _must_precede(record, operations[i], operations[j])} for j in range(count)]

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == count:
            yield order
        for step in range(count):
            if step not in order and before[step] <= set(order):
                yield from extend((*order, step))

    return extend(())


def _must_precede(record: GraphRecord, first: Operation, second: Operation) -> bool:
    if any(record.storages[s].is_input for s in first.creates):
        return True
    touched = {*second.reads, *second.mutates}
    written_then_touched = touched & {*first.creates, *first.mutates}
    touched_then_written = {*first.reads, *first.creates} & set(second.mutates)
    return bool(written_then_touched or touched_then_written)


def simulate(record: GraphRecord, order: Sequence[int], convention: Convention) -> int:
    """Peak of a record without batch norms, counted anew at every step; in-place writes only under ``graph``."""
    unread = {
        index: {step for step in order if index in record.operations[step].reads}
        for index in range(len(record.storages))
    }
    alive: set[int] = set()
    peak = 0
    if convention.as_written:
        alive = {i for i, s in enumerate(record.storages) if s.is_input}
    for step in order:
        now = record.operations[step]
        alive |= set(now.creates)
        total = sum(record.storages[i].bytes for i in alive)
        if convention.as_written:
            total += now.transient_bytes
        elif convention.overwrites and now.overwrites and len(now.creates) == 1:
            size = record.storages[now.creates[0]].bytes
            dying = [record.storages[i] for i in now.reads if unread[i] == {step}]
            if any(s.bytes == size and not s.is_input for s in dying):
                total -= size
        peak = max(peak, total)
        for index in now.reads:
            unread[index].discard(step)
        alive -= {i for i in alive if not unread[i] and not (convention.pins_input and record.storages[i].is_input)}
    return peak
