"""What a RED block needs in memory, measured on its own graph."""

from __future__ import annotations

from functools import lru_cache

import torch

from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import lifetimes, timeline
from redistill.memory.recording import record_graph
from redistill.models.red_block import REDBlock, trace_block


@lru_cache
def red_overhead(convention: Convention) -> float:
    """How many maps of the tapped size a RED block needs beside its input, under ``convention``."""
    x = torch.empty(1, 8, 8, 8)
    with torch.random.fork_rng(devices=()):  # the first call must not move the generator that weights are drawn from
        block = REDBlock(8)
    record = record_graph(trace_block(block), (x,))
    steps = timeline(record, lifetimes(record, convention), convention)
    return max(step.live_bytes for step in steps) / (x.numel() * x.element_size()) - 1
