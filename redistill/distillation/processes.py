"""The little that methods must know of other processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def gather(value: Tensor) -> Tensor:
    """The rows of all processes in their order, without gradient; the value itself on one process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value.detach()
    parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, value.detach().contiguous())
    return torch.cat(parts)
