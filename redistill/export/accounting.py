"""Accounting: the planned arena beside the predicted one, and what every byte between the two is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from redistill.export.planning import planned_layout, results, root_of
from redistill.export.preparation import PreparedModel
from redistill.export.source_map import source_of
from redistill.memory.lifetimes import MemoryProfile, live_bytes

ALIGNMENT = 16
"""ExecuTorch places every buffer at a multiple of so many bytes."""


@dataclass(frozen=True)
class Difference:
    """Bytes that the plan has more (or, below zero, less) than the prediction, and what they are."""

    bytes: int
    what: str


@dataclass(frozen=True)
class Account:
    """A planned arena; the differences sum up to what it has more than the prediction."""

    predicted: int
    planned: int
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if not self.differences:
            return "equal"
        return "; ".join(f"{d.bytes:+,} {d.what}" for d in self.differences)


def account(graph_module: GraphModule, prepared: PreparedModel) -> Account:
    """Compare the plan of a lowered program with the prediction, at the step where the plan needs most.

    Buffers are matched by the operation of the network that makes them. What is left over are temporaries within one
    operation, copies that ExecuTorch makes of views, alignment, and gaps between the buffers.
    """
    profile, layout = prepared.profile, planned_layout(graph_module)
    live = live_bytes(layout.buffers, len(graph_module.graph.nodes))
    peak = max(range(len(live)), key=lambda step: live[step])
    found = list(_at_peak(graph_module, profile, peak))
    found.append(Difference(layout.arena_bytes - live[peak], "gaps between buffers"))
    return Account(profile.peak_bytes, layout.arena_bytes, tuple(d for d in found if d.bytes))


def _at_peak(graph_module: GraphModule, profile: MemoryProfile, peak: int) -> Iterator[Difference]:
    following = list(graph_module.graph.nodes)[peak:]  # an allocation comes before the operation that it is for
    source = next((source_of(node) for node in following if source_of(node)), "")
    steps = {step.node: index for index, step in enumerate(profile.timeline)}
    planned = _alive(graph_module, peak)
    if source not in steps:
        yield Difference(sum(size for size, _, _ in planned) - profile.peak_bytes, f"at {source or 'the end'}")
        return
    predicted = {profile.timeline[b.born].node: b.bytes for b in profile.alive_at(steps[source])}
    yield from _unmatched(planned, predicted)
    live = profile.timeline[steps[source]].live_bytes
    yield Difference(live - profile.peak_bytes, f"at {source}, not at {profile.peak_node}")


def _unmatched(planned: Sequence[tuple[int, str, str]], predicted: dict[str, int]) -> Iterator[Difference]:
    """What one side holds and the other does not; ``predicted`` are bytes by the operation that makes them."""
    left = dict(predicted)
    extra: Counter[str] = Counter()
    for size, maker, operation in sorted(planned, key=lambda buffer: (buffer[1] not in predicted, -buffer[0])):
        twin = next((node for node, other in left.items() if other == size), "")  # laid over another of its inputs
        wanted = left.pop(maker, None) or left.pop(twin, 0)
        aligned = 0 < size - wanted < ALIGNMENT
        extra["alignment to 16 bytes" if wanted and aligned else f"{operation} within {maker}"] += size - wanted
    for node, size in left.items():
        extra[f"{node}, which is not there yet or no more"] -= size
    yield from (Difference(size, what) for what, size in extra.items())


def _alive(graph_module: GraphModule, step: int) -> list[tuple[int, str, str]]:
    """Bytes, operation of the network and operation of the lowering, for each storage alive at ``step``."""
    found: dict[Any, tuple[int, str, str]] = {}
    for node, spec in results(graph_module):
        root = root_of(spec)
        if root is spec and root not in found and root.lifetime[0] <= step <= root.lifetime[1]:
            name = str(node.target).partition(".out")[0]
            found[root] = (root.allocated_memory, source_of(node) or node.name, name)
    return list(found.values())
