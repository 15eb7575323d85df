"""How far a run is, what it depends on, and what came out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from redistill.config.files import differences
from redistill.errors import CheckpointError
from redistill.trainers.acceleration import processes
from redistill.trainers.state import digest

Metrics = dict[str, float]

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is: optimizer steps done, the last epoch's end that was seen to, and the best validation so far."""

    step: int = 0
    ended: int = -1
    best_step: int = -1
    best: float = math.nan
    learning_rate: float = 0.0
    start: Metrics = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(state)

    def takes_as_best(self, value: float, *, higher: bool) -> bool:
        """Whether a validated value is better than all before, which is then noted."""
        sign = 1 if higher else -1
        better = self.best_step < 0 or sign * value > sign * self.best
        if better:
            self.best_step, self.best = self.step, value
        return better


@dataclass(frozen=True)
class Outcome:
    """What came out: validation metrics before training, and metrics of the last and the best validated weights."""

    steps: int
    best_step: int
    start: Metrics
    validation: Metrics
    test: Metrics
    best_validation: Metrics
    best_test: Metrics


@dataclass(frozen=True)
class Facts:
    """What a run's numbers depend on beside its code; sealed in every checkpoint.

    Attributes:
        config: the resolved configuration.
        networks: digests of the weights that are given: teachers, by name.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Facts:
        """With the networks' digests taken now."""
        return cls(config, {name: digest(network) for name, network in networks.items()})

    def to_plain(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"config": self.config, "networks": self.networks, "environment": environment()}

    def check(self, sealed: Mapping[str, Any], place: object) -> None:
        """Compare with what a checkpoint says; say so where a continued run will be equal to rounding only.

        Raises:
            CheckpointError: another configuration, or a network whose weights are others now.
        """
        changed = differences(sealed["config"], dict(self.config))
        if changed:
            raise CheckpointError(f"{place} was started otherwise: {changed[0]}; set run.folder, or that back")
        for name, value in self.networks.items():
            if sealed["networks"].get(name) != value:
                raise CheckpointError(
                    f"the weights of {name} are not those that {place} was trained with; put them back, "
                    "or start anew in another run.folder"
                )
        other = differences(sealed["environment"], environment())
        if other:
            logger.warning(
                "%s was made with other %s: the run goes on, but what follows is equal to a run that was never "
                "stopped up to rounding only, not to the bit", place, ", ".join(other),
            )  # fmt: skip


def environment() -> dict[str, Any]:
    """What sums are rounded by: how many threads and processes, where, and by which library."""
    return {
        "threads": torch.get_num_threads(),
        "processes": processes().num_processes,
        "device": processes().device.type,
        "torch": str(torch.__version__),
    }
