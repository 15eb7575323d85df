"""Attach taps: lay a RED block into the graph at each place that a plan has written into ``node.meta``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PassError
from redistill.internal.seeding import generator
from redistill.models.red_block import REDBlock, trace_block
from redistill.tracing.meta import Meta
from redistill.tracing.operators import module_path

RED = "red"  # where a student keeps its RED blocks


@dataclass(frozen=True)
class TapOrder:
    """A RED block to be laid after a node, called ``name``.

    On the ``in`` side of ``module`` only what is inside it reads the block's output; on the ``out`` side all do.
    """

    name: str
    channels: int
    module: str
    side: str
    dims: int = 2


class AttachTapsPass(PassBase):
    """Registers a RED block ``red.<name>`` for each order in ``meta["taps"]`` and lays its operations into the graph.

    The block's output replaces the node's; the node that carries it gets ``meta["tap"] = name``.
    """

    def __init__(self, init: str = "gentle") -> None:
        super().__init__()
        self.init = init

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        orders = [(node, order) for node in graph_module.graph.nodes for order in node.meta.pop(Meta.TAPS, ())]
        for node, order in orders:
            _lay(graph_module, node, order, self.init)
        if orders:
            graph_module.recompile()
        return PassResult(graph_module, bool(orders))

    def ensures(self, graph_module: GraphModule) -> None:
        """Check that each RED block is read and stands where its input is there."""
        standing = {node.meta[Meta.TAP] for node in graph_module.graph.nodes if Meta.TAP in node.meta}
        lost = sorted(red_blocks(graph_module).keys() - standing)
        if lost:
            raise PassError(f"attach taps: the RED blocks {', '.join(lost)} stand nowhere in the graph")
        graph_module.graph.lint()


def _lay(graph_module: GraphModule, node: Node, order: TapOrder, init: str) -> None:
    weight = next((p for p in graph_module.parameters() if p.is_floating_point()), torch.empty(0, dtype=torch.float32))
    dtype = node.meta.get(Meta.DTYPE, weight.dtype)
    own = generator(torch.initial_seed(), RED, order.name)  # torch's own is left where it is
    block = REDBlock(order.channels, init=init, dims=order.dims, dtype=dtype, generator=own).to(weight.device)
    block.train(graph_module.training)
    path = f"{RED}.{order.name}"
    readers = [user for user in node.users if order.side == "out" or _is_inside(user, order.module)]
    graph_module.add_submodule(path, block)
    output = _inline(graph_module, trace_block(block), path, node)
    for reader in readers:
        reader.replace_input_with(node, output)
    output.meta[Meta.TAP] = order.name


def _inline(graph_module: GraphModule, block: GraphModule, path: str, node: Node) -> Node:
    """Copy the block's nodes after ``node``, which is their input; returns the one that carries the block's output."""
    graph, copies, last = graph_module.graph, dict[Node, Node](), node
    for inner in block.graph.nodes:
        if inner.op == "placeholder":
            copies[inner] = node
        elif inner.op == "output":
            return copies[inner.args[0]]
        else:
            with graph.inserting_after(last):
                last = copies[inner] = graph.node_copy(inner, copies.__getitem__)
            if inner.op == "call_module":
                last.target = f"{path}.{inner.target}"
            last.meta["nn_module_stack"] = {path: (path, REDBlock)}
    raise AssertionError("a graph ends in an output node")


def _is_inside(node: Node, module: str) -> bool:
    path = module_path(node)
    return path == module or path.startswith(f"{module}.")


def red_blocks(module: nn.Module) -> dict[str, REDBlock]:
    """The RED blocks of a student by tap name."""
    return {p.removeprefix(f"{RED}."): m for p, m in module.named_modules() if isinstance(m, REDBlock)}
