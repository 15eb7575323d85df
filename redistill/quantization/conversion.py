"""From observed ranges to int8, without pairs of operations that undo each other."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from redistill.quantization.folding import bake

DEQUANTIZE = "dequantize_per_tensor"
QUANTIZE = "quantize_per_tensor"
DEQUANTIZE_CHANNELS = "dequantize_per_channel"


def convert(prepared: GraphModule) -> GraphModule:
    """Replace observers by quantise and dequantise operations, and weights by int8 ones."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    bake(prepared.to(memory_format=torch.contiguous_format))
    converted = convert_pt2e(prepared)
    for node in list(converted.graph.nodes):
        _drop_round_trip(node)
    converted.graph.eliminate_dead_code()
    # A fresh module: PT2E forbids train() and eval() on its own, which mean nothing here and which evaluation calls.
    program = GraphModule(converted, converted.graph, "Int8")
    program.delete_all_unused_submodules()
    return program.eval().requires_grad_(False)


def _drop_round_trip(node: Node) -> None:
    """Quantising what was just dequantised with the same scale is the value itself."""
    if not is_operation(node, QUANTIZE):
        return
    source = node.all_input_nodes[0]
    if is_operation(source, DEQUANTIZE) and source.args[1:] == node.args[1:]:
        node.replace_all_uses_with(source.all_input_nodes[0])


def is_operation(node: Node, name: str) -> bool:
    """Whether a node is the operation of that name, whatever its overload."""
    return node.op == "call_function" and getattr(node.target, "_opname", "") == name
