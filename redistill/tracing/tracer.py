"""Tracing: record what a teacher does, over real tensors on ``meta``, by modes that only this thread sees.

The teacher's own code runs on a working copy of it. A function mode sees each torch function before it runs, records it
as a node and computes its value on ``meta`` tensors, which no C++ code mistakes for anything else. A module of the copy
asks the tracer before it runs, by torch's own slot for a compiled call: layers become one node, others are traced
through. Sizes stay nodes (``sizes``), so the graph runs at other resolutions, and what Python reads of them is guarded.
What passes the function mode by (TorchScript, C++ extensions) is recorded by a dispatch mode, operator by operator;
what escapes both is known by its tensors, and the module around it stays one opaque node. Nothing is patched.
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map

from redistill.errors import TraceError
from redistill.tracing import operators
from redistill.tracing.call import Call, read_call
from redistill.tracing.contexts import plain_context
from redistill.tracing.copying import meta_copy, set_mode, working_copy
from redistill.tracing.dispatch import RecordOperators
from redistill.tracing.functions import RecordFunctions
from redistill.tracing.guards import exactly, guard_node, mark_guards, user_place
from redistill.tracing.hooks import leave_values, only_keep
from redistill.tracing.leaves import is_layer, is_leaf
from redistill.tracing.meta import Meta
from redistill.tracing.obstacles import DataDependenceError, ObstacleError, check_autocast, describe, remedy_of
from redistill.tracing.rebinding import Rebinder
from redistill.tracing.sizes import SizeTuple, is_size, wrap_number
from redistill.tracing.skeleton import evaluate, known_value, to_meta
from redistill.tracing.watching import WatchOperators, unsized_operator

UNSEEN = "a tensor comes out of code that the trace cannot see into"


class Tracer:
    """Records the forward of a working copy; ``opaque`` maps each module that had to stay one node to the reason."""

    def __init__(
        self, model: nn.Module, leaf_modules: Iterable[type[nn.Module]], training: bool | None, reads_text: bool
    ) -> None:
        self.reads_text = reads_text
        self.root, self.skeleton = working_copy(model), meta_copy(model)
        if training is not None:
            set_mode(self.root, training)
            set_mode(self.skeleton, training)
        self.leaf_modules = tuple(leaf_modules)
        self.graph = Graph()
        self.values: dict[Node, Any] = {}
        self.opaque: dict[str, str] = {}
        self.nodes: dict[int, Node] = {}  # by the address of the tensor that stands for the node
        self.journal: list[tuple[int, Node | None]] = []
        self.paths, self.state = _addresses(model, self.root)
        self.module_paths = {part: path for path, part in self.root.named_modules()}
        self.stack: OrderedDict[str, tuple[str, type]] = OrderedDict()
        self.calls: dict[str, int] = {}
        self.kept: list[Any] = []  # values of erased nodes: no other tensor must take their address
        self.evaluating = False
        self.closed = False
        self.escaped: ObstacleError | None = None
        self.device = torch.device("cpu")

    def run(self, call: Call, inputs: Sequence[Any]) -> Graph:
        """Trace for a ``call`` with ``inputs`` in their places, and drop what nothing reads."""
        self.device = next((x.device for x in inputs if isinstance(x, Tensor) and not x.is_meta), self.device)
        rebinder = Rebinder(self.call_function)
        for part in self.root.modules():
            part.__dict__["_compiled_call_impl"] = partial(self.call_module, part)
            rebinder.rebind(part)
        proxies = self._placeholders(call.names, inputs)
        with torch.no_grad(), RecordOperators(self), RecordFunctions(self):
            output, result = call.trace(lambda *args, **kwargs: _run(self.root, args, kwargs), proxies)
            self._check_seen(output)
        for part in self.root.modules():
            part.__dict__["_compiled_call_impl"] = None
        self.closed = True
        ending = self.graph.output(self.argument(output))
        ending.meta.update(result=result, inlined=tuple(rebinder.inlined))
        mark_guards(self.graph)
        for node in self.graph.nodes:
            if isinstance(self.values.get(node), Tensor):
                node.meta[Meta.SHAPE] = tuple(self.values[node].shape)
                node.meta[Meta.DTYPE] = self.values[node].dtype
        return self.graph

    def _placeholders(self, names: Sequence[str], inputs: Sequence[Any]) -> list[Any]:
        """One placeholder for each tensor; what is no tensor there is a size."""
        found = []
        for name, value in zip(names, inputs, strict=True):
            node = self.create_node("placeholder", name, (), {}, to_meta(value))
            found.append(self.wrap(node, self.values[node]))
        return found

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

    def call_function(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One node for a function that its author declared to be one operation."""
        if self.evaluating or not any(map(self.is_traced, tree_leaves((args, kwargs)))):
            return function(*args, **kwargs)
        return self.record("call_function", function, args, kwargs)

    @property
    def is_blind(self) -> bool:
        """Whether what runs now is not recorded: our own code, or what follows something that was not seen."""
        return self.evaluating or self.escaped is not None

    def _check_seen(self, output: Any) -> None:
        """Whether all that was computed, and all that comes out of it, was seen."""
        if self.escaped is not None:
            raise self.escaped
        if any(isinstance(t, Tensor) and t.is_meta and id(t) not in self.nodes for t in tree_leaves(output)):
            raise ObstacleError(UNSEEN)

    def _is_value(self, argument: Any, value: Any) -> bool:
        """Whether an operation returned its own argument."""
        node = self.nodes.get(id(argument))
        return node is not None and isinstance(value, Tensor) and self.values[node] is value

    def _evaluate(self, node: Node) -> Any:
        with self._unseen():
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
    def _unseen(self) -> Iterator[None]:
        """What runs here is not the teacher's code, but ours."""
        before, self.evaluating = self.evaluating, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.evaluating = before

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
                with self._unseen():
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

    def is_traced(self, value: Any) -> bool:
        """Whether ``value`` comes out of the graph, or is a weight that training changes."""
        return is_size(value) or (isinstance(value, Tensor) and (id(value) in self.nodes or id(value) in self.state))

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

        with self._unseen():
            found: Tensor | None = known_value(node, self.root, size_of)
        if found is not None:
            for source, value in read.items():
                guard_node(source, value, exactly, user_place(sys._getframe(1)))
        return found

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
        with self._unseen():
            node = self.create_node("get_attr", path, (), {}, to_meta(tensor))
        self.bind(tensor, node)
        return node

    def _free_name(self) -> str:
        number = 0
        while hasattr(self.root, f"_tensor_constant{number}"):
            number += 1
        return f"_tensor_constant{number}"

    def call_module(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Trace through ``module``; what cannot be traced through is rolled back to one opaque node."""
        path = self.module_paths[module]
        if self.is_blind:
            return _run(module, args, kwargs)
        if (
            path in self.opaque
            or is_leaf(module, self.leaf_modules)
            or self._is_plain_layer(module, path, args, kwargs)
        ):
            return self._call_leaf(path, args, kwargs)
        mark = (next(iter(reversed(self.graph.nodes)), None), len(self.journal), dict(self.calls))
        try:
            with self._inside(module, path):
                found = _run(module, args, kwargs)
            self._check_seen(found)
            return found
        except Exception as error:
            return self._call_opaque(path, args, kwargs, self.escaped or error, mark)

    def _call_leaf(self, path: str, args: Any, kwargs: Any) -> Any:
        module = self.root.get_submodule(path)
        with self._inside(module, path):
            found = self.record("call_module", path, args, kwargs)
            if module._forward_hooks:
                self._let_hooks_keep(module, args, kwargs, found)
            return found

    def _let_hooks_keep(self, module: nn.Module, args: Any, kwargs: Any, found: Any) -> None:
        """The hooks run within the node, on values; what they keep must be the graph's, so they run here once more."""
        last = next(iter(reversed(self.graph.nodes)))
        mark, escaped = (last, len(self.journal), dict(self.calls)), self.escaped
        try:
            keeps = only_keep(module, args, kwargs, found)
        except Exception:
            keeps = False
        added = takewhile(lambda node: node is not last, reversed(self.graph.nodes))
        if not (keeps and leave_values(added)):
            self._roll_back(*mark)
            self.escaped = escaped

    def _call_opaque(self, path: str, args: Any, kwargs: Any, error: Exception, mark: Any) -> Any:
        if not any(map(self.is_traced, tree_leaves((args, kwargs)))):
            raise error
        self._roll_back(*mark)
        self.escaped = None
        try:
            found = self._call_leaf(path, args, kwargs)
        except Exception:
            raise error from None
        self.opaque[path] = describe(error)
        return found

    @contextmanager
    def _inside(self, module: nn.Module, path: str) -> Iterator[None]:
        times = self.calls.get(path, 0)
        key = f"{path}@{times}" if times else path
        self.calls[path] = times + 1
        self.stack[key] = (path, type(module))
        try:
            yield
        finally:
            self.stack.pop(key, None)

    def _is_plain_layer(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> bool:
        """Whether a layer of one's own, without children but with state, slides over no grid: it stays in one piece."""
        if not is_layer(module):
            return False
        watch = WatchOperators()
        with suppress(Exception), self._unseen(), watch:
            plain = tree_map(lambda v: v.value if is_size(v) else to_meta(v), (args, kwargs))
            evaluate(self.skeleton, "call_module", path, *plain)
        return not watch.slides

    def _roll_back(self, last: Node | None, entries: int, calls: dict[str, int]) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self._erase(node)
        while len(self.journal) > entries:
            address, before = self.journal.pop()
            if before is None:
                self.nodes.pop(address, None)
            else:
                self.nodes[address] = before
        self.calls = calls

    def _erase(self, node: Node) -> None:
        self.graph.erase_node(node)
        self.kept.append(self.values.pop(node, None))


def trace_graph(
    module: nn.Module,
    inputs: Sequence[Any],
    leaf_modules: Iterable[type[nn.Module]] = (),
    call: Call | None = None,
    training: bool | None = None,
    reads_text: bool = False,
) -> tuple[Graph, dict[str, str], nn.Module]:
    """Trace ``module`` in train or eval mode, or the one it is in.

    It is called with the tensors ``inputs``, in order, or as ``call`` says. With ``reads_text`` a size that is made
    text is read for good.

    Returns:
        The graph (the output's classes in its output node's meta), the reason of each module that stays opaque, and
        the working copy, which holds the constants.

    Raises:
        TraceError: the module cannot be traced; the message names the line.
    """
    with plain_context(inputs):
        tracer = Tracer(module, leaf_modules, training, reads_text)
        try:
            graph = tracer.run(call or read_call(module, inputs)[0], inputs)
        except Exception as raised:
            error = tracer.escaped or raised
            refusal = TraceError(f"{type(module).__name__} cannot be traced: {describe(error)}. {remedy_of(error)}")
            refusal.depends_on_data = isinstance(error, DataDependenceError)
            raise refusal from error
    return graph, tracer.opaque, tracer.root


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


def _run(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run ``module`` with its hooks, past the tracer's slot."""
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


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
