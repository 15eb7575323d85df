"""What kinds of operations a graph holds: the one table that memory, stages and passes read."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from redistill.tracing.meta import Meta

_UNARY_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_UNARY_NAMES = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh",
    "hardtanh", "hardswish", "hardsigmoid", "clamp", "neg", "abs", "exp", "sqrt", "square", "dropout",
))  # fmt: skip
_PICKS = frozenset(("getitem", "index_select", "gather", "take", "take_along_dim", "index"))
_SUM_NAMES = frozenset(("add", "sub", "iadd", "isub"))
POINTWISE_MODULES = _UNARY_MODULES
POINTWISE_NAMES = _UNARY_NAMES


def module_of(node: Node) -> nn.Module | None:
    """The module that a ``call_module`` node runs, or None for other nodes."""
    if node.op != "call_module":
        return None
    owner = node.graph.owning_module
    assert owner is not None, "the graph belongs to no module"
    return owner.get_submodule(str(node.target))


def name_of(node: Node) -> str:
    """The bare name of what a function or method node calls: ``relu`` for ``F.relu``, ``torch.relu_``, ``x.relu()``."""
    if node.op == "call_method":
        return str(node.target).strip("_")
    if isinstance(node.target, OpOverload):
        return str(node.target._opname).strip("_")
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", "")).strip("_")
    return ""


def module_path(node: Node) -> str:
    """The dotted path of the module whose forward made ``node`` ('' for the root), as the teacher names it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def is_unary_elementwise(node: Node, module: nn.Module | None) -> bool:
    """Activations and the like: one map in, one map of the same size out, value by value."""
    return isinstance(module, (*_UNARY_MODULES, _BatchNorm)) or name_of(node) in _UNARY_NAMES


def is_sum(node: Node) -> bool:
    """Elementwise sums and differences, in place or not: what joins a shortcut."""
    return name_of(node) in _SUM_NAMES


def is_write(node: Node) -> bool:
    """A part written into its place in a whole."""
    return node.target is operator.setitem


def writes_in_place(node: Node) -> bool:
    """Whether a function writes into a value of the graph; activations and sums that overwrite are none."""
    if isinstance(node.target, OpOverload):
        return bool(node.target._schema.is_mutable)
    method = node.op == "call_method" and str(node.target).endswith("_") and name_of(node) not in _UNARY_NAMES
    return is_write(node) or method


def overwrites(node: Node, module: nn.Module | None) -> bool:
    """Whether the result may take the place of an input that nothing reads later."""
    return is_unary_elementwise(node, module) or is_sum(node) or is_write(node)


def is_convolution(module: nn.Module | None) -> bool:
    """Convolutions, transposed ones excluded."""
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)


def yields_features(module: nn.Module | None) -> bool:
    """Whether a convolution has no fewer channels than it reads: a map for others to read, no picture, no classes."""
    return isinstance(module, _ConvNd) and module.out_channels >= module.in_channels


def is_pool(module: nn.Module | None) -> bool:
    """Pools with a kernel and a stride."""
    return isinstance(module, (nn.MaxPool2d, nn.AvgPool2d))


def is_transposed_convolution(module: nn.Module | None) -> bool:
    """Transposed convolutions."""
    return isinstance(module, _ConvTransposeNd)


def slices_of(node: Node) -> tuple[slice, ...] | None:
    """What a strided slice takes of each axis, from within the first step on (``x[..., 1::2]``); None for all else."""
    slices = _all_slices(node)
    plain = all(
        not isinstance(s.step, Node) and s.start in (None, *range(s.step or 1)) and s.stop is None for s in slices
    )
    return slices if plain and any(s.step not in (None, 1) for s in slices) else None


def crops_of(node: Node) -> tuple[tuple[int, int], ...] | None:
    """How many cells a crop takes off either end of each axis (``x[..., 4:-4, 4:-4]``); None for all else."""
    slices = _all_slices(node)
    ends = [(s.start or 0, -s.stop if s.stop else 0) for s in slices if s.step in (None, 1) and _is_border(s)]
    return tuple(ends) if len(ends) == len(slices) and any(map(any, ends)) else None


def _is_border(part: slice) -> bool:
    start, stop = part.start or 0, part.stop
    return isinstance(start, int) and start >= 0 and (stop is None or (isinstance(stop, int) and stop < 0))


def _all_slices(node: Node) -> tuple[slice, ...]:
    """A slice for each axis of what is sliced, and of nothing else; () for all else."""
    if node.target is not operator.getitem or "shape" not in getattr(node.args[0], "meta", {}):
        return ()
    given = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    dims = len(node.args[0].meta[Meta.SHAPE])  # type: ignore[union-attr]
    if sum(i is Ellipsis for i in given) > 1 or any(not isinstance(i, slice) and i is not Ellipsis for i in given):
        return ()
    at = given.index(Ellipsis) if Ellipsis in given else len(given)
    whole = (slice(None),) * (dims - len(given) + (Ellipsis in given))
    return (*given[:at], *whole, *given[at + 1 :])


def picks_by_constants(node: Node) -> bool:
    """Whether an operation picks from a map by a tensor of places that no input decides: they stay where they are."""
    if name_of(node) not in _PICKS:
        return False
    index = [n for argument in (*node.args[1:], *node.kwargs.values()) for n in _nodes_in(argument)]
    return bool(index) and not any(_depends_on_input(n) for n in index)


def _nodes_in(argument: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(argument, found.append)
    return found


def _depends_on_input(node: Node) -> bool:
    """Whether values of an input decide it, and not its shape alone."""
    seen, queue = {node}, [node]
    while queue:
        current = queue.pop()
        if current.op == "placeholder":
            return True
        if current.target is getattr or name_of(current) == "size":
            continue
        queue += [n for n in current.all_input_nodes if n not in seen]
        seen.update(current.all_input_nodes)
    return False


def read_for_type(node: Node) -> Node | None:
    """The tensor of which an operation reads no more than its type: ``x`` in ``y.type_as(x)``, ``x.new_zeros(n)``."""
    name = name_of(node)
    at = 0 if name.startswith("new_") else 1 if name in ("type_as", "to") else None
    found = node.args[at] if at is not None and len(node.args) > at else None
    return found if isinstance(found, Node) else None


def is_plain_batch_norm(module: nn.Module | None) -> bool:
    """torch.nn's own batch norms with running statistics: a subclass may do more, the batch's own are computed anew."""
    own = isinstance(module, _BatchNorm) and type(module).__module__.startswith("torch.nn")
    return own and module.running_mean is not None  # type: ignore[union-attr]


def is_plain_convolution(module: nn.Module | None) -> bool:
    """A convolution, transposed or not, with torch.nn's own forward and a weight that is what it holds."""
    if not isinstance(module, _ConvNd) or is_parametrized(module) or module._forward_pre_hooks or module._forward_hooks:
        return False
    forwards = (getattr(type(module), name, None) for name in ("forward", "_conv_forward"))
    return all(f is None or f.__module__.startswith("torch.nn") for f in forwards)


def is_foldable_batch_norm(node: Node, modules: dict[str, nn.Module]) -> bool:
    """A batch norm after a convolution that is called once and that nothing else reads: inference folds it away."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if not is_plain_batch_norm(module):
        return False
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    if len(node.graph.find_nodes(op="call_module", target=source.target)) != 1:
        return False
    return is_plain_convolution(modules.get(str(source.target)))


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules by path; one walk instead of one per node."""
    return dict(module.named_modules(remove_duplicate=False))


IN_PLACE_FUNCTIONS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem})
