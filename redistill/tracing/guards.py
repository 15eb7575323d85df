"""Guards: what Python control flow read while tracing, kept so that it can be checked again after a rewrite."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from redistill.tracing.meta import Meta


@dataclass(frozen=True)
class Guard:
    """A value that Python control flow read while tracing: the graph is right only while it stays the same."""

    value: Any
    where: str
    convert: Callable[[Any], Any]


def exactly(value: Any) -> Any:
    """The value as it is: the strictest way to read it."""
    return value


def guard_node(node: Node, value: Any, convert: Callable[[Any], Any], where: str) -> Any:
    """Note on ``node`` that its ``value`` was read by ``convert``; read in two ways, it must stay exactly the same."""
    before: Guard | None = node.meta.get(Meta.GUARD)
    if before is None:
        node.meta[Meta.GUARD] = Guard(convert(value), where, convert)
    elif before.convert is not convert:
        node.meta[Meta.GUARD] = Guard(value, before.where, exactly)
    return convert(value)


def is_guard_only(node: Node) -> bool:
    """Whether ``node`` is kept only so that a guard can be checked again."""
    return bool(node.meta.get(Meta.GUARD_ONLY, False))


def mark_guards(graph: Graph) -> None:
    """Erase dead nodes, but keep those a guard needs, marked, until the rewrite has been verified."""
    needed: set[Node] = set()
    guarding: set[Node] = set()
    for node in reversed(graph.nodes):
        live = node.op in ("output", "placeholder") or node in needed or _mutates(node)
        if live:
            needed.update(node.all_input_nodes)
        elif node in guarding or Meta.GUARD in node.meta:
            guarding.update(node.all_input_nodes)
            node.meta[Meta.GUARD_ONLY] = True
        else:
            graph.erase_node(node)


def _mutates(node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    return node.op == "call_function" and (
        node.target is operator.setitem or getattr(node.target, "__name__", "").endswith("_")
    )


def guards_hold(graph_module: GraphModule, values: dict[str, Any]) -> str | None:
    """Where a recorded guard no longer holds, given the values of a new run; None if all do."""
    for node in graph_module.graph.nodes:
        guard = node.meta.get(Meta.GUARD)
        if guard is not None and node.name in values and guard.convert(values[node.name]) != guard.value:
            return str(guard.where)
    return None


def user_place(frame: FrameType | None) -> str:
    """Where the teacher's own code is: the innermost frame outside torch and this library."""
    return _innermost((f.f_code.co_filename, line) for f, line in traceback.walk_stack(frame))


def error_place(error: BaseException) -> str:
    """Where in the teacher's own code ``error`` was raised."""
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    return _innermost(reversed(frames))


def _innermost(places: Iterable[tuple[str, int]]) -> str:
    for filename, line in places:
        if "/torch/" not in filename and "/redistill/tracing/" not in filename and not filename.startswith("<"):
            return f"{filename}:{line}"
    return "unknown place"
