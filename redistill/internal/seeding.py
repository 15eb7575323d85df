"""Randomness as a function of where one is, so that a continued run needs no generator's state.

Every draw is made under a seed derived from (run seed, purpose, step or image). Whatever is interrupted, skipped or
spread over workers and processes, the same place sees the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(*parts: int | str) -> int:
    """A seed of 63 bits from any parts; different parts give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator at the derived seed."""
    return torch.Generator().manual_seed(derive(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw from torch's CPU generator under the derived seed, and leave its state as it was found."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derive(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)
