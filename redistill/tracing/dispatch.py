"""Dispatch: how what computes past Python is recorded, operator by operator."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redistill.tracing.guards import user_place
from redistill.tracing.obstacles import ObstacleError

if TYPE_CHECKING:
    from redistill.tracing.tracer import Tracer

_ALIASES = frozenset(("aten::detach", "aten::alias", "aten::view_as", "aten::lift_fresh"))


class RecordOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what computes on the trace's tensors past Python: TorchScript, functorch, extensions in C++.

    It raises nothing, for C++ that is left by an exception may stay in a state of its own.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tracer, kwargs = self.tracer, kwargs or {}
        node = next((tracer.nodes[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in tracer.nodes), None)
        if tracer.is_blind or node is None:
            return func(*args, **kwargs)
        if func is torch.ops.aten.set_.default:  # it frees memory, and computes nothing
            return args[0]
        if func._schema.name in _ALIASES:
            result = func(*args, **kwargs)
            tracer.bind(result, node)
            tracer.kept.append(result)
            return result
        try:
            return tracer.record("call_function", func, args, kwargs)
        except Exception as error:
            tracer.escaped = ObstacleError(str(error), place=user_place(sys._getframe(1)))
            return func(*args, **kwargs)
