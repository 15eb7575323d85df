"""Origins: which operation and module of the network an operation of a lowered program comes from."""

from __future__ import annotations

from torch.fx import Node


def source_of(node: Node) -> str:
    """The name of the node, in the graph that was exported, that ``node`` was made from ('' if it is not known)."""
    history = node.meta.get("from_node")
    if not history:
        return ""
    source = history[-1]
    while source.from_node:
        source = source.from_node[-1]
    return str(source.name)


def path_of(node: Node) -> str:
    """The dotted path of the module that ``node`` comes from, or its own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (str(stack[-1][0]) if stack else "") or source_of(node) or node.name
