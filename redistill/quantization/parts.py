"""An int8 network run in parts, as its float form is: every part of a map has the map's own scale.

The graph of the parts is walked beside that of the int8 network. To take a part of a map, to pad it and to join parts
again hands a map on. Every other operation has a twin in the int8 network, which reads the same maps with the same
weights; it gets that one's weights and scale. So the parts compute, to the bit, what the int8 network does.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from redistill.errors import QuantizationError
from redistill.quantization.conversion import DEQUANTIZE, QUANTIZE, is_operation

ATEN = torch.ops.aten
HANDING_ON = frozenset(
    {ATEN.slice.Tensor, ATEN.cat.default, ATEN.pad.default, ATEN.constant_pad_nd.default, ATEN.clone.default}
)
"""Operations whose result is a part of a map, or several parts of one."""
OF_THE_PART = frozenset({"padding", "output_padding", "output_size", "scale_factors", "size"})
"""Arguments that may be others for a part of a map than for the whole."""
ROUNDING = 0.01
"""Largest difference of an int8 weight from the float one, as a share of the largest weight; half a step is 0.004."""


def divide(int8: GraphModule, parts: GraphModule) -> GraphModule:
    """The int8 network in the parts that a float one is run in.

    Args:
        int8: from ``quantize``, of the network run whole; it is not changed.
        parts: the float network in parts, as ``lower_to_aten`` gives it; it is used up.

    Raises:
        QuantizationError: the parts compute something that the int8 network does not, or have other weights.
    """
    walk = _Walk(int8, parts)
    for node in list(parts.graph.nodes):
        walk.visit(node)
    parts.graph.eliminate_dead_code()
    divided = GraphModule(parts, parts.graph, "Int8")
    divided.delete_all_unused_submodules()
    return divided.eval().requires_grad_(False)


class _Walk:
    """Knows for every value of the parts which map of the int8 network it is a part of."""

    def __init__(self, int8: GraphModule, parts: GraphModule) -> None:
        self.int8, self.parts = int8, parts
        self.maps = _find_maps(int8)
        self.scales = _find_scales(self.maps)
        self.part_of: dict[Node, Node] = {}
        self.imported: dict[Node, Node] = {}
        self.inputs = iter(int8.graph.find_nodes(op="placeholder"))

    def visit(self, node: Node) -> None:
        """Find a node's map; give it the weights of what makes that, and round it as that is rounded."""
        if node.op == "placeholder":
            self.part_of[node] = next(self.inputs)
        elif node.op == "call_function":
            read = _maps_read(node, self.part_of)
            if node.target in HANDING_ON and len(set(read)) == 1:
                self.part_of[node] = read[0]
            elif read:
                self.part_of[node] = twin = self._find_twin(node, read)
                for own, other in _constants(node, twin):
                    node.replace_input_with(own, self._import(other))
        if node in self.part_of and self.part_of[node] in self.scales:
            self._round(node, self.scales[self.part_of[node]])

    def _find_twin(self, node: Node, read: list[Node]) -> Node:
        alike = [
            n for n in self.maps
            if n.target == node.target and _maps_read(n, self.maps) == read and _settings(n) == _settings(node)
        ]  # fmt: skip
        twins = [n for n in alike if all(self._is_rounded(*pair) for pair in _constants(node, n))]
        if not twins:
            lacking = "other weights for" if alike else "no"
            raise QuantizationError(f"the int8 network has {lacking} {node.name}; it is not of the student in parts")
        if len({self.scales.get(n) for n in twins}) > 1:
            raise QuantizationError(f"{node.name} is done to several parts of one map, each with a scale of its own")
        return twins[0]

    def _is_rounded(self, own: Node, other: Node) -> bool:
        exact, rounded = _value(self.parts, own), _value(self.int8, other)
        return exact.shape == rounded.shape and bool((exact - rounded).abs().max() <= ROUNDING * exact.abs().max())

    def _import(self, constant: Node) -> Node:
        """A constant of the int8 network, in the graph of the parts."""
        if constant not in self.imported:
            for source in constant.all_input_nodes:
                self._import(source)
            with self.parts.graph.inserting_before(self.parts.graph.find_nodes(op="placeholder")[0]):
                self.imported[constant] = made = self.parts.graph.node_copy(constant, self.imported.__getitem__)
            if constant.op == "get_attr":
                made.target = f"int8_{str(constant.target).replace('.', '_')}"
                self.parts.register_buffer(made.target, _value(self.int8, constant))
        return self.imported[constant]

    def _round(self, node: Node, scale: tuple[Any, ...]) -> None:
        """Quantise a value, and dequantise it for each that reads it, as backends expect: shared, it ties them."""
        operations = torch.ops.quantized_decomposed
        readers = list(node.users)
        with node.graph.inserting_after(node):
            rounded = node.graph.call_function(operations.quantize_per_tensor.default, (node, *scale))
        for reader in readers:
            with node.graph.inserting_before(reader):
                value = node.graph.call_function(operations.dequantize_per_tensor.default, (rounded, *scale))
            reader.replace_input_with(node, value)
            self.part_of[value] = self.part_of[node]


def _find_maps(graph_module: GraphModule) -> dict[Node, Node]:
    """Of every value that depends on the inputs the operation that made the map that it is, or is a part of."""
    maps: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        read = _maps_read(node, maps)
        if node.op == "placeholder":
            maps[node] = node
        elif node.op == "call_function" and read:
            hands_on = node.target in HANDING_ON or is_operation(node, QUANTIZE) or is_operation(node, DEQUANTIZE)
            maps[node] = read[0] if hands_on and len(set(read)) == 1 else node
    return maps


def _find_scales(maps: dict[Node, Node]) -> dict[Node, tuple[Any, ...]]:
    """The arguments by which each map is rounded.

    Raises:
        QuantizationError: a map is rounded in two ways.
    """
    scales: dict[Node, tuple[Any, ...]] = {}
    for node, source in maps.items():
        if is_operation(node, QUANTIZE) and scales.setdefault(source, node.args[1:]) != node.args[1:]:
            raise QuantizationError(f"{source.name} is rounded by two scales, its parts can have one; pool instead")
    return scales


def _maps_read(node: Node, maps: dict[Node, Node]) -> list[Node]:
    return [maps[n] for n in node.all_input_nodes if n in maps]


def _constants(node: Node, twin: Node) -> Iterator[tuple[Node, Node]]:
    """The constants that a node reads beside those of its twin."""
    own, others = ([n for n in x.all_input_nodes if _is_constant(n)] for x in (node, twin))
    return zip(own, others, strict=len(own) == len(others))


def _is_constant(node: Node) -> bool:
    return node.op == "get_attr" or (node.op == "call_function" and all(map(_is_constant, node.all_input_nodes)))


def _settings(node: Node) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included, without tensors and what is of the part."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {"args": tuple(a for a in node.args if not isinstance(a, Node))}
    given = {a.name: a.default_value for a in schema.arguments}
    given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
    return {name: str(value) for name, value in given.items() if name not in OF_THE_PART and not _holds_nodes(value)}


def _holds_nodes(value: Any) -> bool:
    return isinstance(value, Node) or (isinstance(value, (tuple, list)) and any(isinstance(v, Node) for v in value))


def _value(root: GraphModule, node: Node) -> Tensor:
    """What a constant is."""
    if node.op == "get_attr":
        found: Tensor = operator.attrgetter(str(node.target))(root)
        return found.detach()
    computed: Any = torch.fx.node.map_arg(node.args, lambda n: _value(root, n))
    return node.target(*computed)  # type: ignore[operator, no-any-return]
