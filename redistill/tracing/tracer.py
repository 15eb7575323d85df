"""Values: a tracer whose proxies know what their nodes yield, so that control flow on shapes is answered.

``torch.fx`` proxies know nothing of values, so Python control flow on shapes stops them. Here every proxy carries the
value that the operation yields on meta tensors: ``if``, ``len``, iteration and ``isinstance`` are answered from it (and
recorded as a *guard*, checked again after a rewrite), while sizes stay nodes of the graph, which therefore still runs
at other resolutions. The teacher is never touched: what is traced is its skeleton, a copy with tensors on ``meta``.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from redistill.errors import TraceError
from redistill.tracing.call import Call, read_call
from redistill.tracing.guards import Guard, mark_guards, user_frame
from redistill.tracing.skeleton import evaluate, make_skeleton, to_meta

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN_ATTRIBUTES = ("ndim", "requires_grad", "is_quantized", "is_sparse", "layout", "names", "grad")


class ValueProxy(Proxy):
    """A proxy that knows the value its node yields on meta tensors."""

    tracer: ValueTracer

    @property
    def _value(self) -> Any:
        return self.tracer.values[self.node]

    @property  # type: ignore[misc]  # isinstance(x, Tensor) in the teacher's code is answered by the value
    def __class__(self) -> type:
        return type(self._value)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._value, name)
        if name in _PLAIN_ATTRIBUTES or (name.startswith("is_") and not callable(attribute)):
            return attribute
        if callable(attribute) and not isinstance(attribute, Tensor):
            return lambda *args, **kwargs: self.tracer.create_proxy("call_method", name, (self, *args), kwargs)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, i) for i in range(len(self._value))])

    def __len__(self) -> int:
        return len(self._value)

    def __contains__(self, item: Any) -> bool:
        return item in list(self)

    def _guarded(self, convert: Callable[[Any], Any]) -> Any:
        value = convert(self._value)
        if "guard" not in self.node.meta:
            self.node.meta["guard"] = Guard(value, user_frame(traceback.extract_stack()))
            self.tracer.fresh_guards.append(self.node)
        return value

    def __bool__(self) -> bool:
        return bool(self._guarded(bool))

    def __int__(self) -> int:
        return int(self._guarded(int))

    def __float__(self) -> float:
        return float(self._guarded(float))

    def __index__(self) -> int:
        return int(self._guarded(operator.index))


def _in_place(function: Callable[..., Any]) -> Callable[[ValueProxy, Any], Any]:
    def record(self: ValueProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


# Stock proxies turn ``a += b`` into ``a = a + b``, which costs a ResNet50 a third more memory.
for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(ValueProxy, f"__{_function.__name__}__", _in_place(_function))


class _RecordFunctions(TorchFunctionMode):
    """Catches functions that take a proxy where ``__torch_function__`` does not look, such as ``torch.zeros(n)``."""

    def __init__(self, tracer: ValueTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.evaluating or not _has_proxy((args, kwargs)):
            return func(*args, **kwargs)
        if func is torch._assert:
            return None if args[0] else func(bool(args[0]), *args[1:])
        kind, target = ("call_method", func.__name__) if is_tensor_method_or_property(func) else ("call_function", func)
        return self.tracer.create_proxy(kind, target, args, kwargs)


@contextmanager
def _recorded_factories(tracer: ValueTracer) -> Iterator[None]:
    """Record ``torch.zeros(n, m)`` before the argument parser looks: it would turn a proxy into a number."""

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if tracer.evaluating or not _has_proxy((args, kwargs)):
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return call

    originals = {name: getattr(torch, name) for name in ("zeros", "ones", "empty", "full", "rand", "randn", "arange")}
    for name, function in originals.items():
        setattr(torch, name, recorded(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


class ValueTracer(Tracer):
    """Records the forward of a meta skeleton; ``opaque`` maps each module that had to stay a leaf to the reason."""

    def __init__(self, leaf_modules: Iterable[type[nn.Module]] = ()) -> None:
        super().__init__()
        self.values: dict[Node, Any] = {}
        self.leaf_modules = tuple(leaf_modules)
        self.opaque: dict[str, str] = {}
        self.fresh_guards: list[Node] = []
        self.evaluating = False
        self.proxy_buffer_attributes = True

    def run(self, skeleton: nn.Module, call: Call, inputs: tuple[Any, ...]) -> Graph:
        """Trace ``skeleton`` (tensors on meta) called so with ``inputs`` (on meta) and drop what nothing reads."""
        self.call, self.inputs, self.result = call, inputs, None
        with torch.no_grad(), _recorded_factories(self), _RecordFunctions(self):
            graph = self.trace(skeleton)
        graph.output_node().meta["result"] = self.result
        mark_guards(graph)
        for node in graph.nodes:
            if isinstance(self.values.get(node), Tensor):
                node.meta["shape"] = tuple(self.values[node].shape)
                node.meta["dtype"] = self.values[node].dtype
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder for each tensor, in the place that it has among the arguments."""
        proxies = []
        for name, value in zip(self.call.names, self.inputs, strict=True):
            node = self.create_node("placeholder", name, (), {})
            self.values[node] = value
            proxies.append(self.proxy(node))

        def forward(root: nn.Module, *tensors: Any) -> Any:
            output, self.result = self.call.trace(partial(root_fn, root), tensors)
            return output

        return forward, [self.root, *proxies]

    def proxy(self, node: Node) -> ValueProxy:
        """Wrap ``node``; its value must be known."""
        return ValueProxy(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **options: Any
    ) -> Any:
        """Record the operation and compute its value on meta tensors."""
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), *rest)
        for guarded in self.fresh_guards:
            if guarded in node.all_input_nodes:  # it was the call's own argument parser that looked
                del guarded.meta["guard"]
        self.fresh_guards.clear()
        try:
            self.values[node] = self._evaluate(node)
        except Exception:
            self.graph.erase_node(node)
            raise
        return None if self.values[node] is None else self.proxy(node)

    def _evaluate(self, node: Node) -> Any:
        args, kwargs = (map_aggregate(a, self._value_of) for a in (node.args, node.kwargs))
        self.evaluating = True
        try:
            return to_meta(evaluate(self.root, node.op, node.target, args, kwargs))
        finally:
            self.evaluating = False

    def _value_of(self, argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        if argument not in self.values:  # a tensor constant, for which create_arg makes a bare get_attr node
            self.values[argument] = to_meta(operator.attrgetter(str(argument.target))(self.root))
        return self.values[argument]

    def create_arg(self, a: Any) -> Any:
        """A proxy is its node, whatever class it claims to be."""
        return a.node if type(a) is ValueProxy else super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become ``get_attr`` nodes while recording, and are themselves while evaluating."""
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Instances of torch.nn layers, and childless modules with state or a train/eval behaviour of their own."""
        if isinstance(m, self.leaf_modules) or module_qualified_name in self.opaque:
            return True
        if isinstance(m, _CONTAINERS):
            return False
        if any(c.__module__.startswith("torch.nn") for c in type(m).__mro__[:-1] if c is not nn.Module):
            return True
        if next(m.children(), None) is not None:
            return False
        has_state = any(True for _ in m.parameters()) or any(True for _ in m.buffers())
        return has_state or _reads_training(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace through ``m``; what cannot be traced through is rolled back to one leaf node."""
        if self.evaluating:
            return forward(*args, **kwargs)
        last, calls, stack = next(iter(reversed(self.graph.nodes)), None), dict(self.num_calls), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            path = self.path_of_module(m)
            if self.is_leaf_module(m, path) or not _has_proxy((args, kwargs)):
                raise
            self.opaque[path] = _describe(error)
            self._roll_back(last, calls, stack)
            try:
                return super().call_module(m, forward, args, kwargs)
            except Exception:
                del self.opaque[path]
                raise error from None

    def _roll_back(self, last: Node | None, calls: dict[str, int], stack: int) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.values.pop(node, None)
            self.graph.erase_node(node)
        self.num_calls = calls
        while len(self.module_stack) > stack:
            self.module_stack.popitem(last=True)


def trace_graph(
    module: nn.Module,
    inputs: Sequence[Any],
    leaf_modules: Iterable[type[nn.Module]] = (),
    call: Call | None = None,
) -> tuple[Graph, dict[str, str], nn.Module]:
    """Trace ``module`` in the mode it is in, called with the tensors ``inputs`` (in order, or as ``call`` says).

    Returns:
        The graph (the output's classes in its output node's meta), the opaque modules, and the skeleton with constants.

    Raises:
        TraceError: the module cannot be traced; the message names the line.
    """
    tracer = ValueTracer(leaf_modules)
    skeleton = make_skeleton(module)
    try:
        call = call or read_call(module, inputs)[0]
        graph = tracer.run(skeleton, call, tuple(to_meta(x) for x in inputs))
    except Exception as error:
        raise TraceError(
            f"{type(module).__name__} cannot be traced: {_describe(error)}. Control flow that depends on the data has "
            "no graph; move it into a module of its own and name its class in leaf_modules=, or wrap the model"
        ) from error
    return graph, tracer.opaque, skeleton


def _reads_training(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


def _has_proxy(arguments: Any) -> bool:
    return any(type(leaf) is ValueProxy for leaf in _leaves(arguments))


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if type(tree) is slice:
        tree = [tree.start, tree.stop, tree.step]
    if type(tree) is not ValueProxy and isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def _describe(error: BaseException) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{reason} ({user_frame(traceback.extract_tb(error.__traceback__))})"
