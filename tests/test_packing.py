"""Arena layouts: always valid, never below the peak, and checked by a verifier that trusts nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill import RedistillError, profile
from redistill.memory.lifetimes import Buffer
from redistill.memory.packing import ArenaLayout, pack, verify
from redistill.models import load_model
from tests.graphs import trace

STEPS = 8


@st.composite
def buffer_lists(draw) -> list[Buffer]:
    sizes = draw(st.lists(st.integers(1, 20), max_size=10))
    spans = [sorted(draw(st.tuples(st.integers(0, STEPS - 1), st.integers(0, STEPS - 1)))) for _ in sizes]
    return [buffer(f"b{i}", size, *span) for i, (size, span) in enumerate(zip(sizes, spans, strict=True))]


def buffer(name: str, size: int, born: int, dies: int) -> Buffer:
    return Buffer(name, "", (size,), "int8", size, born, dies)


def peak(buffers) -> int:
    return max(sum(b.bytes for b in buffers if b.born <= step <= b.dies) for step in range(STEPS))


def byte_owners_are_single(layout: ArenaLayout) -> bool:
    """Byte by byte at every step: inside the arena, and nobody's but its owner's."""
    for step in range(STEPS):
        taken: set[int] = set()
        for b, offset in zip(layout.buffers, layout.offsets, strict=True):
            if b.born <= step <= b.dies:
                mine = set(range(offset, offset + b.bytes))
                if mine & taken or not mine <= set(range(layout.arena_bytes)):
                    return False
                taken |= mine
    return True


@given(buffer_lists())
def test_every_layout_is_valid_and_no_smaller_than_the_peak(buffers):
    layout = pack(buffers)
    verify(layout)
    assert layout.buffers == tuple(buffers)
    assert byte_owners_are_single(layout)
    assert layout.arena_bytes >= peak(buffers)
    assert layout.arena_bytes == max((o + b.bytes for b, o in zip(buffers, layout.offsets, strict=True)), default=0)


@given(buffer_lists(), st.data())
def test_the_verifier_accepts_exactly_the_valid_layouts(buffers, data):
    offsets = tuple(data.draw(st.integers(0, 30)) for _ in buffers)
    layout = ArenaLayout(tuple(buffers), offsets, 40)
    if byte_owners_are_single(layout):
        verify(layout)
    else:
        with pytest.raises(RedistillError):
            verify(layout)


@settings(max_examples=30)
@given(buffer_lists())
def test_packing_twice_gives_the_same_layout(buffers):
    assert pack(buffers) == pack(list(buffers))


def test_overlap_is_named():
    layout = ArenaLayout((buffer("one", 8, 0, 2), buffer("two", 8, 2, 3)), (0, 7), 16)
    with pytest.raises(RedistillError, match="buffers one and two are alive together and overlap"):
        verify(layout)
    verify(replace(layout, offsets=(0, 8)))
    verify(replace(layout, buffers=(buffer("one", 8, 0, 1), buffer("two", 8, 2, 3))))  # one is gone when two comes


@pytest.mark.parametrize("offset", [-1, 9])
def test_a_buffer_outside_the_arena_is_named(offset):
    layout = ArenaLayout((buffer("one", 8, 0, 2),), (offset,), 16)
    with pytest.raises(RedistillError, match=f"buffer one at {offset} with 8 bytes lies outside the arena"):
        verify(layout)


def test_an_offset_for_every_buffer():
    with pytest.raises(ValueError, match="zip"):
        verify(ArenaLayout((buffer("one", 8, 0, 2),), (), 16))


def test_nothing_to_pack():
    assert pack([]) == ArenaLayout((), (), 0)


def test_buffers_that_never_meet_share_their_place():
    layout = pack([buffer("one", 8, 0, 1), buffer("two", 4, 2, 3), buffer("three", 8, 4, 5)])
    assert (layout.offsets, layout.arena_bytes) == ((0, 0, 0), 8)


def test_swaps_mend_what_greedy_by_size_wastes():
    # Alive at the steps: {4, 3a} {3a, 3b} {3b, 4b}: greedy puts both 4s at 0 and must stack one 3 on top of the other
    buffers = [buffer("4a", 4, 0, 1), buffer("3a", 3, 1, 2), buffer("3b", 3, 2, 3), buffer("4b", 4, 3, 4)]
    assert pack(buffers, rounds=0).arena_bytes > 7
    layout = pack(buffers)
    verify(layout)
    assert layout.arena_bytes == peak(buffers) == 7


@pytest.mark.parametrize(("name", "peak_bytes"), [("resnet18", 4_014_080), ("mobilenet_v2", 6_021_120)])
def test_real_networks_fit_an_arena_of_their_peak(name, peak_bytes):
    x = torch.empty(1, 3, 224, 224)
    module = trace(load_model(f"torchvision:{name}", "random"), x, check=False)
    layout = pack(profile(module, x).buffers)
    verify(layout)
    assert layout.arena_bytes == peak_bytes
