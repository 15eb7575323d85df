"""Guards: what Python control flow read while tracing, kept so that it can be checked again after a rewrite."""

from __future__ import annotations

import operator
import traceback
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule, Node


@dataclass(frozen=True)
class Guard:
    """A value that Python control flow read while tracing: the graph is right only while it stays the same."""

    value: Any
    where: str


def is_guard_only(node: Node) -> bool:
    """Whether ``node`` is kept only so that a guard can be checked again."""
    return bool(node.meta.get("guard_only", False))


def mark_guards(graph: Graph) -> None:
    """Erase dead nodes, but keep those a guard needs, marked, until the rewrite has been verified."""
    needed: set[Node] = set()
    guarding: set[Node] = set()
    for node in reversed(graph.nodes):
        live = node.op in ("output", "placeholder") or node in needed or _mutates(node)
        if live:
            needed.update(node.all_input_nodes)
        elif node in guarding or "guard" in node.meta:
            guarding.update(node.all_input_nodes)
            node.meta["guard_only"] = True
        else:
            graph.erase_node(node)


def _mutates(node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and (
        node.target is operator.setitem or getattr(node.target, "__name__", "").endswith("_")
    )


def guards_hold(graph_module: GraphModule, values: dict[str, Any]) -> str | None:
    """Where a recorded guard no longer holds, given the values of a new run; None if all do."""
    for node in graph_module.graph.nodes:
        guard = node.meta.get("guard")
        if guard is not None and node.name in values:
            value = values[node.name]
            convert = (
                operator.index
                if isinstance(guard.value, int) and not isinstance(guard.value, bool)
                else type(guard.value)
            )
            if convert(value) != guard.value:
                return str(guard.where)
    return None


def user_frame(stack: traceback.StackSummary) -> str:
    """Where the teacher's own code was: the deepest frame outside torch and this library."""
    for frame in reversed(stack):
        if "/torch/" not in frame.filename and "/redistill/tracing/" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return "unknown place"
