"""A moving average of a network's weights, with its buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- d average + (1 - d) weight after each step, starting from a copy of the network at step 0.

    Floating-point buffers (batch-norm statistics) are averaged like weights, since they must fit the averaged weights
    and not the latest; integer buffers (counters) are copied. The decay rises as min(d, (1 + n) / (10 + n)) over the
    first steps n, so that the average forgets the initial weights early. Kept as plain tensors: nothing is deep-copied,
    so any module will do, and only the network given is averaged.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in network.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - decay)
            else:
                average.copy_(value)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Put the average into the network for a while, and its own weights back afterwards."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.values)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.updates = int(state["updates"])
        saved: dict[str, Tensor] = state["values"]
        for name, value in self.values.items():
            value.copy_(saved[name])
