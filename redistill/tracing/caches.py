"""Caches: what a model keeps of the last size that it saw, such as anchors, and compares the next one with.

A graph traced at that very size would hold the cached values, and its grids could not change. So such a model is traced
as if it had last seen another size: then it computes what it would have read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from redistill.errors import TraceError
from redistill.tracing.call import Call
from redistill.tracing.checks import other_sizes
from redistill.tracing.contexts import preserved_generators
from redistill.tracing.copying import set_mode, working_copy
from redistill.tracing.meta import Meta

M = TypeVar("M", bound=tuple[Graph, dict[str, str], nn.Module])


def traced_past_caches(model: nn.Module, call: Call, inputs: Sequence[Tensor], trace: Callable[[nn.Module], M]) -> M:
    """What ``trace`` makes of the model; where that compares sizes with cached ones, of one that has seen another size.

    Raises:
        TraceError: as ``trace``.
    """
    found = trace(model)
    if not (_holds_values(model) and _meets_numbers(found[0])):
        return found
    for trial in other_sizes(inputs):
        twin = working_copy(model)
        set_mode(twin, training=False)
        with suppress(Exception), torch.no_grad(), preserved_generators():
            call.run(twin, trial)
            with suppress(TraceError):
                again = trace(twin)
                return found if _meets_numbers(again[0]) else again
    return found


def _holds_values(model: nn.Module) -> bool:
    """Whether a module holds a tensor or a shape that is no part of its state."""
    return any(isinstance(v, (Tensor, torch.Size)) for part in model.modules() for v in part.__dict__.values())


def _meets_numbers(graph: Graph) -> bool:
    """Whether control flow found a size equal to a number."""
    return any(_is_met(node) for node in graph.nodes if Meta.GUARD in node.meta)


def _is_met(node: Node) -> bool:
    equal = {operator.eq: True, operator.ne: False}.get(node.target)  # type: ignore[arg-type]
    return (
        equal is not None and node.meta[Meta.GUARD].value is equal and not all(isinstance(a, Node) for a in node.args)
    )
