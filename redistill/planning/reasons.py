"""Reasons: why a stage must keep its grid, in words that name what fixes it."""

from __future__ import annotations

from torch.fx import Node

from redistill.internal.text import format_shape
from redistill.planning.growth import Growth
from redistill.tracing.operators import module_path


def place_of(node: Node) -> str:
    """A node, and the module whose forward it belongs to, if that is not the whole."""
    path = module_path(node)
    return f"{node.name} ({path})" if path else node.name


def needs_its_size(node: Node, growth: Growth) -> str:
    """That a node takes no other size, and the parameter or buffer that meets the map there, if it is one."""
    table = _table_met_by(node, growth)
    of = "" if table is None else f", that of {table.target} {format_shape(growth.record.values[table.name])}"
    return f"{place_of(node)} needs this very size{of}"


def _table_met_by(node: Node, growth: Growth) -> Node | None:
    """The first parameter or buffer that a node reads, itself or through operations on what no input's size changes."""
    queue = [n for n in node.all_input_nodes if not growth.scales(n.name)]
    for found in queue:
        if found.op == "get_attr":
            return found
        queue += [n for n in found.all_input_nodes if not growth.scales(n.name) and n not in queue]
    return None
