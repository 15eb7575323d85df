"""Gates: squeeze and excitation inside a region, in two sweeps: first for the mean of a map, then with the gate known.

The mean of a whole map ends a region, since every piece would need all of it. But it can be added up piece by piece,
without the map ever being there: a first sweep over the tiles does so, what is computed of the mean (one number for
each channel) is run whole, and a second sweep computes the tiles again and goes on with the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.fx import Node

from redistill.tracing import operators

if TYPE_CHECKING:
    from redistill.planning.patches.network import PatchNetwork, Step


@dataclass(frozen=True)
class Stretch:
    """Operations from ``start`` to ``end`` that are run piece by piece together.

    Attributes:
        mean: the operation whose mean is known by then; what is computed of it alone is not run in pieces. -1: none.
        source: the map that is wanted, for its mean alone; -1 where all that is read after ``end`` is wanted.
    """

    start: int
    end: int
    mean: int = -1
    source: int = -1

    def wants(self, step: Step) -> bool:
        """Whether the result of an operation is what the pieces are computed for."""
        return step.position == self.source if self.source >= 0 else step.last_use >= self.end


def find_stretches(network: PatchNetwork, start: int, end: int) -> tuple[Stretch, ...]:
    """The sweeps of a region: one, or two where there is a mean in it."""
    means = _means(network, start, end)
    if not means:
        return (Stretch(start, end),)
    (mean,) = means
    source = network.steps[mean].operands[0].position
    return Stretch(start, source + 1, source=source), Stretch(start, end, mean)


def may_be_swept(network: PatchNetwork, start: int, end: int) -> bool:
    """Whether all means in a region are one, of a map in it, and of use in it alone."""
    means = _means(network, start, end)
    if len(means) != 1:
        return not means
    (mean,) = means
    source = network.steps[mean].operands[0].position
    return source >= start and all(network.steps[t].last_use < end for t in network.aside(mean))


def _means(network: PatchNetwork, start: int, end: int) -> list[int]:
    return [step.position for step in network.steps[start:end] if step.takes_mean]


def takes_mean(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation yields the mean over rows and columns of a map, both kept as one."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
    if operators.name_of(node) == "adaptive_avg_pool2d":
        return given.get("dim", given.get("output_size")) in (1, (1, 1), [1, 1])
    if operators.name_of(node) != "mean" or not given.get("keepdim"):
        return False
    dims = given.get("dim")
    return isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
