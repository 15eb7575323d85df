"""The recording: a graph in the making, the value of each node on ``meta``, and what stands for which node.

Tensors of the graph are known by their address; a journal of what stood for which node lets a part be rolled back.
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from redistill.tracing import operators
from redistill.tracing.guards import exactly, guard_node, user_place
from redistill.tracing.obstacles import DataDependenceError, ObstacleError, check_autocast
from redistill.tracing.sizes import SizeTuple, is_size, wrap_number
from redistill.tracing.skeleton import evaluate, known_value, to_meta
from redistill.tracing.watching import unsized_operator

UNSEEN = "a tensor comes out of code that the trace cannot see into"


@dataclass(frozen=True)
class Mark:
    """A moment of a recording: its last node, the journal's length, the modules' calls."""

    last: Node | None
    entries: int
    calls: dict[str, int]


class Recording:
    """The nodes that were made, and the values on meta tensors that stand for them.

    Args:
        model: the teacher, whose own tensors may be met too, in functions that it holds.
        root: the working copy that runs; new constants become its attributes.
        skeleton: its copy on meta, whose modules compute the values of nodes.
        reads_text: whether a size that is made text is read for good.
    """

    def __init__(self, model: nn.Module, root: nn.Module, skeleton: nn.Module, reads_text: bool) -> None:
        self.root, self.skeleton, self.reads_text = root, skeleton, reads_text
        self.graph = Graph()
        self.values: dict[Node, Any] = {}
        self.nodes: dict[int, Node] = {}  # by the address of the tensor that stands for the node
        self.journal: list[tuple[int, Node | None]] = []
        self.paths, self.state = _addresses(model, root)
        self.stack: OrderedDict[str, tuple[str, type]] = OrderedDict()
        self.calls: dict[str, int] = {}  # of each module
        self.kept: list[Any] = []  # values of erased nodes: no other tensor must take their address
        self.evaluating = False
        self.closed = False
        self.device = torch.device("cpu")

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, value: Any) -> Node:
        """Add a node, with the modules that it is made in."""
        node = self.graph.create_node(kind, target, args, kwargs)
        node.meta["nn_module_stack"] = OrderedDict(self.stack)
        self.values[node] = value
        return node

    def node(self, target: Any, args: tuple[Any, ...], value: Any) -> Node:
        """Record a function whose value is known."""
        return self.create_node("call_function", target, self.argument(args), {}, value)

    def record(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the operation, compute its value on meta tensors, and return what stands for it."""
        check_autocast(self.device)
        node = self.create_node(kind, target, self.argument(args), self.argument(kwargs), None)
        try:
            value = self.values[node] = self._evaluate(node)
        except Exception as error:
            unsized = unsized_operator(error, lambda: self._evaluate(node))
            self._erase(node)
            if unsized == "item":
                raise DataDependenceError.of_value(operators.name_of(node)) from error
            if unsized is not None:
                raise DataDependenceError.of_size(unsized) from error
            raise
        changed = next((a for a in (*args[:1], kwargs.get("out")) if a is not None and self._is_value(a, value)), None)
        if changed is not None:  # in place: what the teacher holds now stands for this node
            self.bind(changed, node)
            return changed
        return self.wrap(node, value)

    def known(self, tensor: Tensor) -> Tensor | None:
        """The real value of what the values of no input decide, such as a buffer plus one; None for all else.

        Sizes that it is made of are read for good.
        """
        node = self.nodes.get(id(tensor))
        if node is None:
            return tensor
        read: dict[Node, Any] = {}

        def size_of(source: Node) -> Any:
            value = self.values[source]
            if _is_number(value) or (isinstance(value, tuple) and all(map(_is_number, value))):
                read[source] = value
            return read.get(source)

        with self.unseen():
            found: Tensor | None = known_value(node, self.root, size_of)
        if found is not None:
            for source, value in read.items():
                guard_node(source, value, exactly, user_place(sys._getframe(1)))
        return found

    def is_traced(self, value: Any) -> bool:
        """Whether ``value`` comes out of the graph, or is a weight that training changes."""
        return is_size(value) or (isinstance(value, Tensor) and (id(value) in self.nodes or id(value) in self.state))

    def value_of(self, argument: Any) -> Any:
        """A node's value; anything else as it is."""
        return self.values[argument] if isinstance(argument, Node) else argument

    def bind(self, tensor: Tensor, node: Node) -> None:
        """From now on ``tensor`` stands for ``node``."""
        self.journal.append((id(tensor), self.nodes.get(id(tensor))))
        self.nodes[id(tensor)] = node

    def wrap(self, node: Node, value: Any) -> Any:
        """What the teacher's code gets for ``node``: tensors on meta, sizes, or structures of them."""
        if isinstance(value, Tensor):
            if id(value) in self.nodes:  # the operation handed its input on, which stands for another node
                with self.unseen():
                    value = self.values[node] = value.detach()
            self.bind(value, node)
            return value
        if isinstance(value, (tuple, list)) and value and all(type(v) in (int, float, bool) for v in value):
            return SizeTuple.of(self, value, node)
        if isinstance(value, dict):
            return _rebuilt(value, {k: self._part(node, k, v) for k, v in value.items()})
        if isinstance(value, (tuple, list)):
            return _rebuilt(value, [self._part(node, i, v) for i, v in enumerate(value)])
        return wrap_number(self, value, node)

    def _part(self, node: Node, key: Any, value: Any) -> Any:
        return value if value is None else self.wrap(self.node(operator.getitem, (node, key), value), value)

    def argument(self, value: Any) -> Any:
        """``value`` as an argument of a node."""
        if isinstance(value, Tensor):
            return self.nodes.get(id(value)) or self._constant(value)
        if is_size(value):
            return value.value if value.tracer.closed else value.origin
        if isinstance(value, Node):
            return value
        if isinstance(value, dict):
            return {self.argument(k): self.argument(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            parts = [self.argument(v) for v in value]
            if hasattr(value, "_fields"):
                return self.graph.call_function(type(value), tuple(parts))
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, (slice, range)):
            return type(value)(*(self.argument(getattr(value, n)) for n in ("start", "stop", "step")))
        if is_dataclass(value) and not isinstance(value, type):
            fields = {name: self.argument(getattr(value, name)) for name in value.__dataclass_fields__}
            return self.graph.call_function(type(value), (), fields)
        if type(value).__module__ == "numpy" and hasattr(value, "item"):
            return self.argument(torch.from_numpy(value)) if value.ndim else value.item()
        return value

    def _constant(self, tensor: Tensor) -> Node:
        """A node for a tensor that the graph does not yield: a weight, or what was made of constants."""
        path = self.paths.get(id(tensor))
        if path is None:
            if tensor.is_meta:
                raise ObstacleError(UNSEEN)
            path = self._free_name()
            setattr(self.root, path, tensor)
            self.paths[id(tensor)] = path
        with self.unseen():
            node = self.create_node("get_attr", path, (), {}, to_meta(tensor))
        self.bind(tensor, node)
        return node

    def _free_name(self) -> str:
        number = 0
        while hasattr(self.root, f"_tensor_constant{number}"):
            number += 1
        return f"_tensor_constant{number}"

    def _is_value(self, argument: Any, value: Any) -> bool:
        """Whether an operation returned its own argument."""
        node = self.nodes.get(id(argument))
        return node is not None and isinstance(value, Tensor) and self.values[node] is value

    def _evaluate(self, node: Node) -> Any:
        with self.unseen():
            try:
                return self._evaluate_with(node, self.value_of)
            except RuntimeError:  # it may read a number that is held in a tensor
                if not any(self._number_in(source) is not None for source in node.all_input_nodes):
                    raise
                return self._evaluate_with(node, self._number_or_value)

    def _evaluate_with(self, node: Node, value_of: Callable[[Any], Any]) -> Any:
        args, kwargs = (map_aggregate(a, value_of) for a in (node.args, node.kwargs))
        return to_meta(evaluate(self.skeleton, node.op, node.target, args, kwargs))

    def _number_in(self, node: Node) -> Any:
        """The real value of a tensor that holds one number, if no input decides it."""
        value = self.values[node]
        return known_value(node, self.root) if isinstance(value, Tensor) and value.numel() == 1 else None

    def _number_or_value(self, argument: Any) -> Any:
        number = self._number_in(argument) if isinstance(argument, Node) else None
        return self.value_of(argument) if number is None else number

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What runs here is not the teacher's code, but ours."""
        before, self.evaluating = self.evaluating, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.evaluating = before

    def mark(self) -> Mark:
        """This moment, to go back to."""
        return Mark(next(iter(reversed(self.graph.nodes)), None), len(self.journal), dict(self.calls))

    def roll_back(self, mark: Mark) -> None:
        """Erase all that was recorded since then; what stood for other nodes stands for them again."""
        for node in reversed(self.graph.nodes):
            if node is mark.last:
                break
            self._erase(node)
        while len(self.journal) > mark.entries:
            address, before = self.journal.pop()
            if before is None:
                self.nodes.pop(address, None)
            else:
                self.nodes[address] = before
        self.calls = mark.calls

    def _erase(self, node: Node) -> None:
        self.graph.erase_node(node)
        self.kept.append(self.values.pop(node, None))


def _addresses(model: nn.Module, copy: nn.Module) -> tuple[dict[int, str], set[int]]:
    """The path of each tensor of the model and of its copy by address, and the addresses of parameters and buffers.

    The model's own are there because functions in attributes may hold its modules.
    """
    paths: dict[int, str] = {}
    state: set[int] = set()
    for root in (copy, model):
        for prefix, part in root.named_modules():
            held = {**part._parameters, **part._buffers}
            state.update(id(t) for t in held.values() if t is not None)
            for name, value in {**part.__dict__, **held}.items():
                if isinstance(value, Tensor):
                    paths.setdefault(id(value), f"{prefix}.{name}".lstrip("."))
    return paths, state


def _rebuilt(like: Any, parts: Any) -> Any:
    """``parts`` in a container of the kind of ``like``."""
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    if type(like).__module__ == "torch.return_types":
        return type(like)(parts)
    return type(like)(parts) if isinstance(like, (tuple, list)) or type(like) is dict else _filled(like, parts)


def _filled(like: Any, parts: dict[Any, Any]) -> Any:
    kind: Any = type(like)
    return kind(**parts) if is_dataclass(like) else kind(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))
