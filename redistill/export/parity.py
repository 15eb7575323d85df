"""Parity: what a file computes beside what the network computes, before the file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redistill.errors import ExportError
from redistill.export.preparation import tensors_of
from redistill.internal.text import format_shapes

FLOAT_BOUND = 1e-4
"""Float kernels of other runtimes sum in another order; measured are 1e-6 and less."""
INT8_BOUND = 0.1
"""Integer kernels round ties and intermediate results otherwise: a few of the output's 255 steps."""
WORST_BOUND = 0.5
"""However coarse an int8 network is; a file that lost its weights is 1.0 away."""

Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Parity:
    """The largest difference of any output value, as a share of the largest value of that output.

    Attributes:
        alike: whether the network gave one value throughout, which a broken file can give too.
    """

    relative_error: float
    trials: int
    alike: bool = False


def int8_bound(rounding: float) -> float:
    """How far int8 kernels may be from an int8 network that is ``rounding`` away from the float one.

    Each rounds in its own way, and two that are as far from the float network can be twice that from one another:
    networks of random weights amplify rounding so much that it shows.
    """
    return min(max(INT8_BOUND, 2 * rounding), WORST_BOUND)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference as a share of the largest expected value; infinite for other shapes, or if not finite."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    errors = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))
        for a, b in zip(found, expected, strict=True)
        if b.numel()
    ]
    worst = max(errors, default=0.0)
    return worst if worst == worst else float("inf")


def check_parity(run: Run, reference: nn.Module, trials: Iterable[Sequence[Tensor]], bound: float, what: str) -> Parity:
    """Run a file and the network on the same inputs.

    Raises:
        ExportError: they differ by more than ``bound``.
    """
    worst, count = 0.0, 0
    values: set[float] = set()
    for inputs in trials:
        with torch.no_grad():
            expected = tensors_of(reference(*inputs))
        values.update(bound for x in expected if x.numel() for bound in map(float, x.double().aminmax()))
        error = relative_error(run(inputs), expected)
        worst, count = max(worst, error), count + 1
        if error > bound:
            raise ExportError(
                f"the {what} file does not compute what the network does: relative error {error:.1e} at "
                f"{format_shapes(inputs)}, allowed is {bound:.0e}; nothing was written"
            )
    return Parity(worst, count, len(values) < 2)
