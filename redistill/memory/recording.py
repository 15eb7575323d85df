"""Recording: run a graph once on fake tensors and note which storages each operation reads, makes and changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from redistill.errors import TraceError
from redistill.internal.silence import quiet_logger
from redistill.memory.meter import MemoryMeter, state_of
from redistill.tracing import operators
from redistill.tracing.contexts import plain_context
from redistill.tracing.copying import map_tensors, shallow_copy
from redistill.tracing.guards import is_guard_only

ITEM_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


class Shape(tuple[int, ...]):
    """The shape of a tensor, in a record; a plain tuple there is a tuple the graph itself computed."""


@dataclass(frozen=True)
class Storage:
    """A piece of activation memory: what tensors, views and in-place operations share."""

    node: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    is_input: bool


@dataclass(frozen=True)
class Operation:
    """One node of the graph as it ran; storages are indices into the record's list.

    ``keeps`` are those that its module holds on to when it is done: weights made in a hook, a cache.
    """

    node: str
    module: str
    shape: tuple[int, ...]
    reads: tuple[int, ...]
    creates: tuple[int, ...]
    mutates: tuple[int, ...]
    transient_bytes: int
    macs: int
    overwrites: bool
    folds: bool
    keeps: tuple[int, ...] = ()


@dataclass(frozen=True)
class GraphRecord:
    """All that memory analysis needs to know of a graph, in execution order."""

    operations: tuple[Operation, ...]
    storages: tuple[Storage, ...]
    values: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run (the whole batch)."""
        return sum(operation.macs for operation in self.operations)


class Recorder(MemoryMeter):
    """A meter that keeps every storage it sees, the storages written to, and the multiply-accumulates."""

    def __init__(self, ignored: Iterable[Tensor], item_size: int | None) -> None:
        super().__init__(ignored)
        self.item_size = item_size
        self.index_of: dict[int, int] = {}
        self.storages: list[tuple[tuple[int, ...], torch.dtype, int]] = []
        self.mutated: set[int] = set()
        self.macs = 0

    def size_of(self, tensor: Tensor) -> int:
        """Bytes of the storage, floating-point values counted in the deployed type."""
        size = tensor.untyped_storage().nbytes()
        if self.item_size is None or not tensor.dtype.is_floating_point:
            return size
        return size // tensor.dtype.itemsize * self.item_size

    def on_birth(self, key: int, tensor: Tensor, size: int) -> None:
        """Give the new storage its index; addresses are reused, indices never."""
        self.index_of[key] = len(self.storages)
        self.storages.append((tuple(tensor.shape), tensor.dtype, size))

    def on_death(self, key: int) -> None:
        """Forget the address of a storage that has gone."""
        del self.index_of[key]

    def indices(self, value: Any) -> tuple[int, ...]:
        """The storages that ``value`` (a tensor or a structure of them) refers to."""
        keys = (t.untyped_storage()._cdata for t in tree_leaves(value) if isinstance(t, Tensor))
        return tuple(dict.fromkeys(self.index_of[k] for k in keys if k in self.index_of))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.mutated.update(self.indices(value))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.macs += int(formula(*args, **(kwargs or {}), out_val=out)) // 2
        return out


class ShapeInterpreter(Interpreter):
    """Runs a graph in eval mode on fake tensors, a batch norm in a tenth of the time its fake kernel takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra_traceback = False  # an error's message stays the one line it was

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A batch norm yields a map like its input; all else runs as it is."""
        if operators.is_plain_batch_norm(self.module.get_submodule(str(target))):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)


class RecordingInterpreter(ShapeInterpreter):
    """Runs a graph node by node and asks the recorder what each one did."""

    def __init__(self, modules: nn.Module, graph: Graph, recorder: Recorder) -> None:
        super().__init__(modules, graph=graph)
        self.recorder = recorder
        self.modules = operators.modules_of(modules)
        self.held: dict[Node, tuple[int, ...]] = {}
        self.values: dict[str, Any] = {}
        self.operations: list[Operation] = []
        self.owners: dict[int, Node] = {}

    def run_node(self, n: Node) -> Any:
        """Run the node and note what the recorder saw meanwhile."""
        recorder = self.recorder
        before, first_new, macs = recorder.live_bytes, len(recorder.storages), recorder.macs
        recorder.peak_bytes = before
        recorder.mutated.clear()
        value = self.call(n)
        if n.op == "placeholder" and isinstance(value, Tensor):
            recorder.track(value)
        held = recorder.indices(value)
        self.held[n] = held
        self.values[n.name] = _shape_of(value)
        if not is_guard_only(n):
            created = tuple(i for i in held if i >= first_new)
            keeps = tuple(i for i in recorder.index_of.values() if i >= first_new and i not in held)
            rise = recorder.peak_bytes - before - sum(recorder.storages[i][2] for i in (*created, *keeps))
            self._note(n, value, created, keeps, max(0, rise), recorder.macs - macs)
        return value

    def call(self, n: Node) -> Any:
        """Run the node itself.

        Raises:
            TraceError: its sizes are not known before it has run.
        """
        try:
            return super().run_node(n)
        except DynamicOutputShapeException as error:
            raise TraceError(
                f"how much {n.name} ({operators.module_path(n)}) yields depends on the data, so what follows has no "
                "size; leave it to the caller"
            ) from error

    def _note(
        self, node: Node, value: Any, created: tuple[int, ...], keeps: tuple[int, ...], transient: int, macs: int
    ) -> None:
        self.owners.update(dict.fromkeys((*created, *keeps), node))
        reads = tuple(dict.fromkeys(i for source in node.all_input_nodes for i in self.held[source]))
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        self.operations.append(
            Operation(
                node=node.name,
                module=operators.module_path(node),
                shape=tuple(value.shape) if isinstance(value, Tensor) else (),
                reads=reads,
                creates=created,
                mutates=tuple(sorted(self.recorder.mutated & set(reads))),
                transient_bytes=transient,
                macs=macs,
                overwrites=operators.overwrites(node, module),
                folds=operators.is_foldable_batch_norm(node, self.modules),
                keeps=keeps,
            )
        )


def record_graph(graph_module: GraphModule, inputs: Sequence[Tensor], dtype: str | None = None) -> GraphRecord:
    """Run ``graph_module`` once on fake tensors shaped like ``inputs``; nothing is computed and no weight is read.

    Args:
        graph_module: the graph; left untouched.
        inputs: example inputs; only their shapes and types matter.
        dtype: count floating-point values as ``fp32``, ``fp16``, ``bf16`` or ``int8`` (default: as they are).
    """
    return record(graph_module, inputs, dtype, RecordingInterpreter)[0]


def record(
    graph_module: GraphModule,
    inputs: Sequence[Tensor],
    dtype: str | None,
    make_interpreter: Callable[[nn.Module, Graph, Recorder], RecordingInterpreter],
) -> tuple[GraphRecord, RecordingInterpreter]:
    """Run the graph once by an interpreter; what :func:`record_graph` and the probe at another size have in common."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # it logs failures, which are raised, or looked for
    with plain_context(inputs), torch.no_grad(), quiet_logger("torch._subclasses.fake_tensor"):
        modules = _fake_modules(graph_module, mode)
        recorder = Recorder(state_of(modules), ITEM_SIZES[dtype] if dtype else None)
        interpreter = make_interpreter(modules, graph_module.graph, recorder)
        with mode:
            fakes = [torch.empty(x.shape, dtype=x.dtype) for x in inputs]
            with recorder:
                interpreter.run(*fakes)
    return GraphRecord(tuple(interpreter.operations), _storages(interpreter), interpreter.values), interpreter


def fake_copy(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A deep copy of ``module`` whose tensors are fake and claim to be on the CPU."""
    return map_tensors(module, lambda tensor: _as_fake(tensor, mode))


def _fake_modules(graph_module: GraphModule, mode: FakeTensorMode) -> nn.Module:
    """The modules a graph calls, in eval mode and with fake tensors; all else is shared with them, so it is quick."""
    copies: dict[int, Any] = {}

    def tensor_copy(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in copies:
            copies[id(tensor)] = _as_fake(tensor, mode)
        return None if tensor is None else copies[id(tensor)]

    def module_copy(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
        if id(module) not in copies:
            twin = copies[id(module)] = kind.__new__(kind)
            twin.__dict__.update(module.__dict__, training=False)
            twin.__dict__["_parameters"] = {k: tensor_copy(v) for k, v in module._parameters.items()}
            twin.__dict__["_buffers"] = {k: tensor_copy(v) for k, v in module._buffers.items()}
            twin.__dict__["_modules"] = {
                k: v if v is None else module_copy(v, type(v)) for k, v in module._modules.items()
            }
        found = copies[id(module)]
        assert isinstance(found, nn.Module)
        return found

    return module_copy(graph_module, nn.Module)


def with_fake_weights(value: Any) -> Any:
    """A plain convolution over fake weights of its own, all else as it is.

    Fake modes fake real weights anew in every call, and cache no result that came of them.
    """
    if not isinstance(value, nn.Module) or not operators.is_plain_convolution(value):
        return value
    weights = {k: torch.empty(p.shape, dtype=p.dtype) for k, p in value.named_parameters(recurse=False)}
    twin = shallow_copy(value)
    twin._parameters = {**value._parameters, **weights}  # type: ignore[dict-item]
    return twin


def _as_fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    meta = tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
    return mode.fake_tensor_converter.from_meta_and_device(mode, meta, torch.device("cpu"))


def _storages(interpreter: RecordingInterpreter) -> tuple[Storage, ...]:
    found = []
    for index, (shape, dtype, size) in enumerate(interpreter.recorder.storages):
        node = interpreter.owners.get(index)
        name, path = (node.name, operators.module_path(node)) if node else ("", "")
        is_input = node is not None and node.op == "placeholder"
        found.append(Storage(name, path, shape, str(dtype).removeprefix("torch."), size, is_input))
    return tuple(found)


def _shape_of(value: Any) -> Any:
    """Shapes in place of tensors, everything else as it is."""
    if isinstance(value, Tensor):
        return Shape(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(_shape_of(v) for v in value)
    if isinstance(value, dict):
        return {key: _shape_of(v) for key, v in value.items()}
    return value
