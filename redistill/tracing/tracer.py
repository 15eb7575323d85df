"""Tracing: record what a teacher does, over real tensors on ``meta``, by modes that only this thread sees.

The teacher's own code runs on a working copy of it. A function mode sees each torch function before it runs, records it
as a node and computes its value on ``meta`` tensors, which no C++ code mistakes for anything else. A module of the copy
asks the tracer before it runs, by torch's own slot for a compiled call: layers become one node, others are traced
through. Sizes stay nodes (``sizes``), so the graph runs at other resolutions, and what Python reads of them is guarded.
What passes the function mode by (TorchScript, C++ extensions) is recorded by a dispatch mode, operator by operator;
what escapes both is known by its tensors, and the module around it stays one opaque node. Nothing is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils._pytree import tree_leaves, tree_map

from redistill.errors import TraceError
from redistill.tracing.call import Call, read_call
from redistill.tracing.contexts import plain_context
from redistill.tracing.copying import meta_copy, set_mode, working_copy
from redistill.tracing.dispatch import RecordOperators
from redistill.tracing.functions import RecordFunctions
from redistill.tracing.guards import mark_guards
from redistill.tracing.hooks import leave_values, only_keep
from redistill.tracing.leaves import is_layer, is_leaf
from redistill.tracing.meta import Meta
from redistill.tracing.obstacles import DataDependenceError, ObstacleError, describe, remedy_of
from redistill.tracing.rebinding import Rebinder
from redistill.tracing.recording import UNSEEN, Mark, Recording
from redistill.tracing.sizes import is_size
from redistill.tracing.skeleton import evaluate, to_meta
from redistill.tracing.watching import WatchOperators


class Tracer(Recording):
    """Records the forward of a working copy; ``opaque`` maps each module that had to stay one node to the reason."""

    def __init__(
        self, model: nn.Module, leaf_modules: Iterable[type[nn.Module]], training: bool | None, reads_text: bool
    ) -> None:
        super().__init__(model, working_copy(model), meta_copy(model), reads_text)
        if training is not None:
            set_mode(self.root, training)
            set_mode(self.skeleton, training)
        self.leaf_modules = tuple(leaf_modules)
        self.opaque: dict[str, str] = {}
        self.module_paths = {part: path for path, part in self.root.named_modules()}
        self.escaped: ObstacleError | None = None

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
        mark = self.mark()
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
        mark, escaped = self.mark(), self.escaped
        try:
            keeps = only_keep(module, args, kwargs, found)
        except Exception:
            keeps = False
        added = takewhile(lambda node: node is not mark.last, reversed(self.graph.nodes))
        if not (keeps and leave_values(added)):
            self.roll_back(mark)
            self.escaped = escaped

    def _call_opaque(self, path: str, args: Any, kwargs: Any, error: Exception, mark: Mark) -> Any:
        if not any(map(self.is_traced, tree_leaves((args, kwargs)))):
            raise error
        self.roll_back(mark)
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
        with suppress(Exception), self.unseen(), watch:
            plain = tree_map(lambda v: v.value if is_size(v) else to_meta(v), (args, kwargs))
            evaluate(self.skeleton, "call_module", path, *plain)
        return not watch.slides


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


def _run(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run ``module`` with its hooks, past the tracer's slot."""
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
