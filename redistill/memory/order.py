"""Scheduling: is the order of operations memory-optimal, and if not, which one is?"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import functional_values
from redistill.memory.recording import GraphRecord


@dataclass(frozen=True)
class Order:
    """An order of the recorded operations, the peak it reaches in bytes, and whether none is proven better."""

    positions: tuple[int, ...]
    peak_bytes: int
    optimal: bool


class Dependencies:
    """Which operation needs which, and what each reads and makes, whatever the order."""

    def __init__(self, record: GraphRecord, convention: Convention) -> None:
        self.record = record
        self.convention = convention
        count = len(record.operations)
        self.before: list[int] = [0] * count  # bit masks of direct predecessors
        self.makes: list[list[int]] = [[] for _ in range(count)]
        self.reads: list[list[int]] = [[] for _ in range(count)]
        self.size: list[int] = []
        self.readers: list[int] = []  # bit mask of the operations that read each value
        self.pinned: list[bool] = []
        self.is_input: list[bool] = []
        self._collect_values()
        self._order_writes()
        self._put_inputs_first()

    def _collect_values(self) -> None:
        for index, (storage, born, readers) in enumerate(_values(self.record, self.convention)):
            about = self.record.storages[storage]
            self.size.append(about.bytes)
            self.is_input.append(about.is_input)
            self.pinned.append(about.is_input and self.convention.pins_input)
            self.readers.append(sum(1 << r for r in readers))
            self.makes[born].append(index)
            for reader in readers:
                self.reads[reader].append(index)
                self.before[reader] |= 1 << born
        for step, operation in enumerate(self.record.operations):
            if operation.folds and self.convention.folds_batch_norm:
                self._follow_fold(step)

    def _follow_fold(self, step: int) -> None:
        """Readers of a folded batch norm's output still come after it in the graph."""
        created = set(self.record.operations[step].creates)
        for later in range(step + 1, len(self.record.operations)):
            if created & set(self.record.operations[later].reads):
                self.before[later] |= 1 << step

    def _order_writes(self) -> None:
        """An in-place write stays after what touched its memory before, and before what touches it later."""
        touched: dict[int, list[int]] = {}
        written: dict[int, int] = {}
        for step, operation in enumerate(self.record.operations):
            for storage in operation.reads:
                if storage in written:
                    self.before[step] |= 1 << written[storage]
            for storage in operation.mutates:
                self.before[step] |= sum(1 << earlier for earlier in touched.get(storage, ()))
                written[storage] = step
            for storage in (*operation.reads, *operation.creates):
                touched.setdefault(storage, []).append(step)

    def _put_inputs_first(self) -> None:
        """Whoever calls the graph holds all inputs from the start: none can be put off until it is read."""
        inputs = 0
        for step, operation in enumerate(self.record.operations):
            self.before[step] |= inputs
            if any(self.record.storages[s].is_input for s in operation.creates):
                inputs |= 1 << step

    @cached_property
    def ancestors(self) -> list[int]:
        """For each operation the bit mask of all that must run before it."""
        found: list[int] = []
        for step, mask in enumerate(self.before):
            total = mask & ~(1 << step)
            for earlier in _bits(total):
                total |= found[earlier]
            found.append(total)
        return found

    def transient(self, step: int) -> int:
        """Bytes that live only inside the operation."""
        return self.record.operations[step].transient_bytes if self.convention.counts_transients else 0

    def overwritten(self, step: int, executed: int) -> int | None:
        """The input whose buffer the operation may take over once ``executed`` (a bit mask) have run."""
        if not self.convention.overwrites or not self.record.operations[step].overwrites or len(self.makes[step]) != 1:
            return None
        size = self.size[self.makes[step][0]]
        for value in self.reads[step]:
            last_reader = not self.readers[value] & ~executed & ~(1 << step)
            if last_reader and self.size[value] == size and not self.is_input[value]:
                return value
        return None


def _values(record: GraphRecord, convention: Convention) -> list[tuple[int, int, list[int]]]:
    """(storage, operation that makes it, operations that read it), with in-place writes as written or undone."""
    if not convention.as_written:
        values = functional_values(record, convention.folds_batch_norm)
        return [(v.storage, v.born, v.readers) for v in values]
    born = {s: step for step, operation in enumerate(record.operations) for s in operation.creates}
    readers: dict[int, list[int]] = {s: [] for s in born}
    for step, operation in enumerate(record.operations):
        for storage in operation.reads:
            readers[storage].append(step)
    return [(s, born[s], readers[s]) for s in born]


def lower_bound(record: GraphRecord, convention: Convention) -> int:
    """Bytes that no order of the operations can stay below.

    While an operation runs, every value must be alive that something before it makes and that it or something after it
    reads, whatever the order; the largest such sum over all operations is the bound.
    """
    deps = Dependencies(record, convention)
    if not deps.size:
        return 0
    steps = len(deps.before)
    by_or_at = _as_matrix(deps.ancestors, steps) | np.eye(steps, dtype=bool)  # [t, u]: u runs before t, or is t
    maker = np.empty(len(deps.size), dtype=int)
    for step, made in enumerate(deps.makes):
        maker[made] = step
    read_later = _as_matrix(_read_at_or_after(deps), steps).T  # [t, v]: t or something after it reads v
    alive = by_or_at[:, maker] & read_later | np.array(deps.pinned)
    alive[maker, np.arange(len(maker))] = True
    total = alive @ np.array(deps.size)
    after = _as_masks(by_or_at.T)  # of each operation and all that must run after it
    for step in range(steps):
        total[step] += deps.transient(step)
        reused = deps.overwritten(step, ~after[step])
        total[step] -= deps.size[reused] if reused is not None else 0
    return int(total.max())


def _as_matrix(masks: Sequence[int], columns: int) -> np.ndarray:
    """Bit masks as the rows of a boolean matrix."""
    width = (columns + 7) // 8
    packed = np.frombuffer(b"".join(m.to_bytes(width, "little") for m in masks), dtype=np.uint8)
    return np.unpackbits(packed.reshape(len(masks), width), axis=1, bitorder="little")[:, :columns].astype(bool)


def _read_at_or_after(deps: Dependencies) -> list[int]:
    """For each value the bit mask of the operations that read it or run before one that does."""
    found = [0] * len(deps.size)
    for step, reads in enumerate(deps.reads):
        mask = deps.ancestors[step] | 1 << step
        for value in reads:
            found[value] |= mask
    return found


def _as_masks(matrix: np.ndarray) -> list[int]:
    """The rows of a boolean matrix as bit masks."""
    packed = np.packbits(matrix, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def best_order(record: GraphRecord, convention: Convention, max_states: int = 100_000) -> Order:
    """The order of least peak memory, by best-first search over the sets of operations already run.

    A step that frees at least what it takes and stays under the peak so far is taken at once: delaying it cannot help.
    An order that meets the lower bound needs no search. Where it gives up, after ``max_states`` states, the order
    is improved step by step instead; it is then marked optimal only if it meets the bound.
    """
    deps = Dependencies(record, convention)
    identity = tuple(range(len(record.operations)))
    present, bound = _peak_of(deps, identity), lower_bound(record, convention)
    if present == bound:
        return Order(identity, present, True)
    improved = _improve(deps, identity)
    peak = _peak_of(deps, improved)
    if peak == bound:
        return Order(improved, peak, True)
    found = _search(deps, peak, max_states)
    if found is None:
        return Order(improved, peak, False)
    return found if found.peak_bytes < peak else Order(improved, peak, True)


def _improve(deps: Dependencies, order: tuple[int, ...]) -> tuple[int, ...]:
    """Move operations away from the peak while that lowers it (or the number of steps that reach it)."""
    standing = _standing(deps, order)
    while True:
        better = next((o for o in _moves(deps, order) if _standing(deps, o) < standing), None)
        if better is None:
            return order
        order, standing = better, _standing(deps, better)


def _standing(deps: Dependencies, order: tuple[int, ...]) -> tuple[int, int]:
    """The peak, and how many steps reach it."""
    levels = _levels(deps, order)
    return max(levels), levels.count(max(levels))


def _moves(deps: Dependencies, order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """For each value alive at the peak: its remaining readers before the peak, or its maker after it."""
    levels = _levels(deps, order)
    at = levels.index(max(levels))
    position = {step: i for i, step in enumerate(order)}
    for step in order[: at + 1]:
        for value in deps.makes[step]:
            later = [s for s in _bits(deps.readers[value]) if position[s] > at]
            if not later:
                continue
            needed = {u for s in later for u in (s, *_bits(deps.ancestors[s])) if position[u] >= at}
            if order[at] not in needed:
                yield (
                    *order[:at],
                    *(s for s in order[at:] if s in needed),
                    *(s for s in order[at:] if s not in needed),
                )
            held = {u for u in order[: at + 1] if u == step or deps.ancestors[u] >> step & 1}
            if order[at] not in held:
                yield (
                    *(s for s in order[: at + 1] if s not in held),
                    *(s for s in order if s in held),
                    *order[at + 1 :],
                )


@dataclass(frozen=True)
class _State:
    executed: int
    live: int
    peak: int
    last: int
    parent: _State | None


def _search(deps: Dependencies, ceiling: int, max_states: int) -> Order | None:
    count = len(deps.before)
    everything = (1 << count) - 1
    pinned = sum(s for s, p in zip(deps.size, deps.pinned, strict=True) if p)
    start = _State(0, pinned, pinned, -1, None)
    queue: list[tuple[int, int, int, _State]] = [(start.peak, 0, 0, start)]
    reached = {0: start.peak}  # the lowest peak yet known for each set of operations run
    pushed = 0
    while queue and pushed < max_states:
        state = heapq.heappop(queue)[-1]
        if state.executed == everything:
            return Order(_positions(state), state.peak, True)
        if state.peak > reached[state.executed]:
            continue
        for following in _successors(deps, state, count):
            if following.peak < reached.get(following.executed, ceiling + 1):
                reached[following.executed] = following.peak
                pushed += 1
                heapq.heappush(queue, (following.peak, -following.executed.bit_count(), pushed, following))
    return None


def _successors(deps: Dependencies, state: _State, count: int) -> list[_State]:
    following = []
    for step in range(count):
        if not state.executed >> step & 1 and not deps.before[step] & ~state.executed:
            after = _run(deps, state, step)
            if after.live <= state.live and after.peak <= state.peak:
                return [after]
            following.append(after)
    return following


def _run(deps: Dependencies, state: _State, step: int) -> _State:
    executed = state.executed | 1 << step
    reused = deps.overwritten(step, state.executed)
    taken = sum(deps.size[v] for v in deps.makes[step] if not deps.pinned[v])
    taken -= deps.size[reused] if reused is not None else 0
    freed = sum(
        deps.size[v]
        for v in (*deps.reads[step], *deps.makes[step])
        if v != reused and not deps.pinned[v] and not deps.readers[v] & ~executed
    )
    peak = max(state.peak, state.live + taken + deps.transient(step))
    return _State(executed, state.live + taken - freed, peak, step, state)


def _peak_of(deps: Dependencies, order: tuple[int, ...]) -> int:
    return max(_levels(deps, order))


def _levels(deps: Dependencies, order: tuple[int, ...]) -> list[int]:
    """Bytes alive at each step of an order."""
    live = sum(s for s, p in zip(deps.size, deps.pinned, strict=True) if p)
    state = _State(0, live, 0, -1, None)
    levels = []
    for step in order:
        state = _run(deps, replace(state, peak=0, parent=None), step)
        levels.append(state.peak)
    return levels


def _positions(state: _State | None) -> tuple[int, ...]:
    order = []
    while state is not None and state.parent is not None:
        order.append(state.last)
        state = state.parent
    return tuple(reversed(order))


def _bits(mask: int) -> list[int]:
    """Positions of the set bits."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
