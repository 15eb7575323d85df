"""The losses between two log lines: averaged over steps and processes, and found out where they are not finite."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

Terms = Mapping[str, Tensor]


class NotFiniteError(ArithmeticError):
    """A loss term was NaN or infinite; carries the first step at which it was, and all of its terms."""

    def __init__(self, step: int, terms: Mapping[str, float]) -> None:
        self.step = step
        super().__init__(", ".join(f"{name}={value:.4g}" for name, value in terms.items()))


class LossMonitor:
    """Collects loss terms without waiting for the device; waits only when asked for the averages.

    What it holds can be saved and given back, so that the averages of a continued run are those of one that was not
    stopped.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.names: list[str] = []
        self.rows: list[Tensor] = []
        self.images = 0
        self.since = time.perf_counter()

    def restart(self) -> None:
        """Start the clock anew, where time was spent on something else."""
        self.images, self.since = 0, time.perf_counter()

    def add(self, step: int, terms: Terms, images: int) -> None:
        """Take in the terms of one backward pass over so many images of all processes."""
        self.pending.append((step, {name: value.detach() for name, value in terms.items()}))
        self.images += images

    def settle(self) -> None:
        """Average over processes what has come in, and look at it; every process calls this.

        Raises:
            NotFiniteError: at the first step at which any process saw NaN or infinity.
        """
        if not self.pending:
            return
        names = list(self.pending[-1][1])
        kept = [(step, terms) for step, terms in self.pending if list(terms) == names]
        rows = torch.stack([torch.stack([terms[n] for n in names]) for _, terms in kept]).float()
        values = self.accelerator.reduce(rows, reduction="mean").cpu()
        self.pending = []
        for (step, _), row in zip(kept, values, strict=True):
            if not torch.isfinite(row).all():
                raise NotFiniteError(step, dict(zip(names, row.tolist(), strict=True)))
        self.rows = [*(self.rows if names == self.names else []), *values]
        self.names = names

    def averages(self) -> dict[str, float]:
        """The mean of each term and of their sum since the last call, and images per second; empty if nothing came.

        Raises:
            NotFiniteError: as :meth:`settle`.
        """
        self.settle()
        if not self.rows:
            return {}
        means = dict(zip(self.names, torch.stack(self.rows).mean(dim=0).tolist(), strict=True))
        self.rows = []
        speed = self.images / max(time.perf_counter() - self.since, 1e-9)
        return {"loss": sum(means.values()), **means, "images_per_second": round(speed, 1)}

    def state_dict(self) -> dict[str, Any]:
        """What has come in since the last averages, once it is settled."""
        return {"names": self.names, "rows": torch.stack(self.rows) if self.rows else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give it back."""
        rows = state["rows"]
        self.names, self.rows = list(state["names"]), [] if rows is None else list(rows)
