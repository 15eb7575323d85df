"""Hooks: what a forward hook keeps of a layer that stays one node, for other code to read, is a value of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.fx import Node

from redistill.tracing.operators import writes_in_place
from redistill.tracing.outputs import writes_over


def only_keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> bool:
    """Call a module's forward hooks; whether all of them keep what they are given, and none yields another output."""
    results = [
        hook(module, args, kwargs, output) if key in module._forward_hooks_with_kwargs else hook(module, args, output)
        for key, hook in module._forward_hooks.items()
    ]
    return all(result is None for result in results)


def leave_values(nodes: Iterable[Node]) -> bool:
    """Whether none of ``nodes`` writes over a value of the graph."""
    return not any(writes_in_place(n) or any(writes_over(n, source) for source in n.all_input_nodes) for n in nodes)
