"""From a module to a functional ATen graph with batch norms folded, which is what PT2E annotates."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from redistill.errors import QuantizationError
from redistill.internal.text import format_shapes
from redistill.quantization.folding import fold_batch_norms

Inputs = tuple[Tensor, ...]

TOLERANCE = 1e-3
"""Largest difference between a module and its graph, relative to the largest output."""


def lower_to_aten(model: nn.Module, inputs: Inputs) -> GraphModule:
    """The ATen graph of a copy of ``model`` in eval mode: nothing is written in place, batch norms are folded, the
    batch size is free unless the model fixes it. Weights keep their names, and the output its structure.

    Args:
        model: any module that ``torch.export`` can capture; left untouched.
        inputs: example inputs, batch first.

    Raises:
        QuantizationError: the model cannot be exported, or its graph computes something else.
    """
    network = copy.deepcopy(model).cpu().eval()
    inputs = tuple(x.cpu() for x in inputs)
    exported = export(network, inputs)
    graph_module = _with_plain_signature(exported.module(check_guards=False))
    for node in list(graph_module.graph.nodes):
        _make_functional(node)
        _drop_dropout(node)
    fold_batch_norms(graph_module)
    graph_module.recompile()
    check_equal(network, graph_module, inputs)
    return graph_module


def export(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    """``torch.export`` with a free batch size, or with that of ``inputs`` where the network fixes it."""
    pair = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in inputs)  # a size of 1 would be taken as fixed
    batch = Dim("batch")
    try:
        return torch.export.export(network, pair, dynamic_shapes=tuple({0: batch} for _ in pair))
    except Exception:
        pass  # either the batch size is fixed, or what is wrong is said below
    try:
        return torch.export.export(network, inputs)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise QuantizationError(
            f"{type(network).__name__} cannot be exported for inputs {format_shapes(inputs)}: {reason}"
        ) from error


def check_equal(network: nn.Module, graph_module: nn.Module, inputs: Inputs) -> None:
    """Raise unless both give the same for random inputs shaped like ``inputs``."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        expected, found = (pytree.tree_leaves(module(*drawn)) for module in (network, graph_module))
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, Tensor) and (a - b).abs().max() > TOLERANCE * a.abs().max():
            raise QuantizationError(
                f"the exported graph of {type(network).__name__} differs from the module by {(a - b).abs().max():.2g}; "
                "it writes in place into a view of a tensor that is read later: write that without in-place operations"
            )


def _with_plain_signature(exported: Any) -> GraphModule:
    """The graph with inputs and output as they are written, instead of export's flattening and its checks."""
    graph = Graph()
    output = graph.graph_copy(exported.graph, {})
    leaves = output if isinstance(output, (tuple, list)) else (output,)
    graph.output(pytree.tree_unflatten(leaves, exported._out_spec))
    return GraphModule(exported, graph, "Aten")


def _make_functional(node: Node) -> None:
    """An in-place operation as one with a result: in an exported graph all later readers read the result."""
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return
    name = target._opname
    twin = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.startswith("_") else None
    node.target = getattr(twin, target._overloadname, target)


def _drop_dropout(node: Node) -> None:
    """Dropout at rest does nothing, and would cost a pair of quantise and dequantise."""
    if node.target is torch.ops.aten.dropout.default:
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)
