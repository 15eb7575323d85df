"""Lowering to ExecuTorch's edge dialect: activations that have no portable kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from executorch.exir.dialects._ops import ops
from executorch.exir.pass_base import ExportPass, NodeMetadata, ProxyValue

_ATEN = torch.ops.aten
PRESERVED = (
    _ATEN.linear.default,
    _ATEN.relu.default,
    _ATEN.hardswish.default,
    _ATEN.hardsigmoid.default,
    _ATEN.silu.default,
)
"""Operations that ExecuTorch would otherwise take apart into more maps than the operation itself needs."""

Emit = Callable[[Any, tuple[Any, ...]], ProxyValue]


class LowerActivationsPass(ExportPass):  # type: ignore[misc]
    """Write hardswish, hardsigmoid and SiLU by operations that have a portable kernel.

    Each step after the first can overwrite the one before, so that the activation needs its input and its output and
    no third map. What comes out of one operation keeps that operation's metadata.
    """

    def call_operator(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meta: NodeMetadata) -> ProxyValue:
        """Replace one operation, or leave it as it is."""
        written = _RECIPES.get(op)
        if written is None:
            return super().call_operator(op, args, kwargs, meta)

        def emit(op: Any, args: tuple[Any, ...]) -> ProxyValue:
            return super(LowerActivationsPass, self).call_operator(op, args, {}, meta)

        return written(args[0], emit)


def _hardswish(x: Any, emit: Emit) -> ProxyValue:
    """x * min(max(x + 3, 0), 6) / 6."""
    gate = emit(ops.edge.aten.hardtanh.default, (emit(ops.edge.aten.add.Scalar, (x, 3.0)), 0.0, 6.0))
    return emit(ops.edge.aten.mul.Scalar, (emit(ops.edge.aten.mul.Tensor, (gate, x)), 1 / 6))


def _hardsigmoid(x: Any, emit: Emit) -> ProxyValue:
    """min(max(x + 3, 0), 6) / 6."""
    gate = emit(ops.edge.aten.hardtanh.default, (emit(ops.edge.aten.add.Scalar, (x, 3.0)), 0.0, 6.0))
    return emit(ops.edge.aten.mul.Scalar, (gate, 1 / 6))


def _silu(x: Any, emit: Emit) -> ProxyValue:
    """x * sigmoid(x)."""
    return emit(ops.edge.aten.mul.Tensor, (emit(ops.edge.aten.sigmoid.default, (x,)), x))


_RECIPES: dict[Any, Callable[[Any, Emit], ProxyValue]] = {
    ops.edge.aten.hardswish.default: _hardswish,
    ops.edge.aten.hardsigmoid.default: _hardsigmoid,
    ops.edge.aten.silu.default: _silu,
}
