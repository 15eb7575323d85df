"""Profiling: any module in, its memory profile out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from redistill.memory.conventions import Convention, find_convention
from redistill.memory.eager import profile_eager
from redistill.memory.lifetimes import MemoryProfile, check_dtype, lifetimes, timeline
from redistill.memory.order import lower_bound
from redistill.memory.recording import GraphRecord, record_graph
from redistill.tracing.call import read_call
from redistill.tracing.capture import capture
from redistill.tracing.contexts import undisturbed
from redistill.tracing.deployed import deployed_form


@undisturbed
def profile(
    model: nn.Module,
    example_inputs: Any,
    convention: str | Convention = "deploy",
    dtype: str | None = None,
) -> MemoryProfile:
    """Peak activation memory of one inference run of ``model``.

    Args:
        model: any module; it is traced first unless it is a ``GraphModule`` (``eager`` needs no trace).
        example_inputs: a tensor, a tuple of arguments or a mapping of them by keyword; of tensors only shapes and types
            matter.
        convention: ``deploy``, ``arena``, ``graph``, ``eager`` or a :class:`Convention` of your own.
        dtype: count floating-point activations as ``fp32``, ``fp16``, ``bf16`` or ``int8``.

    Raises:
        ModelError: an unknown convention or type.
        TraceError: the model cannot be traced.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
        >>> profile(model, torch.zeros(1, 3, 16, 16)), profile(model, torch.zeros(1, 3, 16, 16), "eager").peak_bytes
        (<MemoryProfile 11.000 KiB (deploy) at _0, 4 steps, 55,296 MACs>, 19456)
    """
    counted = find_convention(convention)
    check_dtype(dtype)
    if isinstance(model, GraphModule):
        _, inputs = read_call(model, example_inputs)
        found = profile_record(record_graph(deployed_form(model), inputs, dtype), counted)
    elif counted.of_module:
        found = profile_eager(model, *read_call(model, example_inputs), counted, dtype)
    else:
        captured = capture(model, example_inputs)
        found = profile_record(record_graph(captured.graph_module, captured.inputs, dtype), counted)
    return replace(found, parameters=count_parameters(model), dtype=dtype)


def profile_record(record: GraphRecord, convention: Convention, bounds_orders: bool = True) -> MemoryProfile:
    """The profile of a recorded graph, in the order it was recorded, with the bound over all orders where wanted."""
    buffers = lifetimes(record, convention)
    bound = lower_bound(record, convention) if bounds_orders else None
    return MemoryProfile(convention, timeline(record, buffers, convention), buffers, bound)


def count_parameters(module: nn.Module) -> int:
    """Number of distinct parameter values."""
    return sum(p.numel() for p in module.parameters())
