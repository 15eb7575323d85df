"""Reduce the input: give the image a stage of its own, whose factor makes it smaller before anything sees it.

Or before a part of the network sees it: where the image joins maps of the network, it must follow their grid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.passes.checks import require_shapes
from redistill.tracing.meta import Meta
from redistill.tracing.operators import name_of

_POOLS = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}
_READS_SIZE = ("getattr", "size", "dim")


class ReduceInputPass(PassBase):
    """Inserts an average pool of one cell behind each image: nothing changes until a plan gives it a stride.

    What reads the size of the image goes on reading that of the whole one, so that outputs keep their size.
    """

    def requires(self, graph_module: GraphModule) -> None:
        """Check that the inputs' shapes are known."""
        require_shapes(graph_module, "reduce the input")

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        images = _images(graph_module)
        for image in images:
            _insert_pool(graph_module, image)
        graph_module.recompile()
        return PassResult(graph_module, bool(images))


class ReduceJoinedPass(PassBase):
    """Inserts the same between an image and those of its users where it joins maps, the ``joins`` of a stage graph."""

    def __init__(self, joins: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        super().__init__()
        self.joins = tuple(joins)

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite ``graph_module`` in place."""
        nodes = {node.name: node for node in graph_module.graph.nodes}
        for image, users in self.joins:
            _insert_pool(graph_module, nodes[image], users)
        graph_module.recompile()
        return PassResult(graph_module, bool(self.joins))


def _images(graph_module: GraphModule) -> list[Node]:
    """The inputs with the most axes: beside images (B, C, H, W) sequences are conditions."""
    axes = {node: len(node.meta[Meta.SHAPE]) for node in graph_module.graph.find_nodes(op="placeholder")}
    most = max(axes.values(), default=0)
    return [node for node, count in axes.items() if count == most and most in _POOLS]


def _insert_pool(graph_module: GraphModule, image: Node, users: Collection[str] = ()) -> None:
    """Between an image and some of its users, by default all but those that read its size."""
    path = "reduced_input"
    while hasattr(graph_module, path):
        path += "_"
    graph_module.add_submodule(path, _POOLS[len(image.meta[Meta.SHAPE])](1, 1, ceil_mode=True, count_include_pad=False))
    with graph_module.graph.inserting_after(image):
        pool = graph_module.graph.call_module(path, (image,))
    pool.meta[Meta.REDUCES_INPUT] = True
    reads = [u for u in image.users if u is not pool and (u.name in users if users else not _reads_size(u))]
    image.replace_all_uses_with(pool, delete_user_cb=reads.__contains__)


def _reads_size(user: Node) -> bool:
    return user.op in ("call_function", "call_method") and name_of(user) in _READS_SIZE
