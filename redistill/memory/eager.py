"""The ``eager`` convention: a module as it is, run on fake tensors, each dispatched operation one step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from redistill.errors import ModelError
from redistill.internal.reasons import first_line
from redistill.internal.silence import quiet_logger
from redistill.internal.text import format_shapes
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import Buffer, MemoryProfile, Step, live_bytes
from redistill.memory.meter import state_of, until_settled
from redistill.memory.recording import ITEM_SIZES, Recorder, fake_copy
from redistill.tracing.call import Call
from redistill.tracing.contexts import plain_context, preserved_generators
from redistill.tracing.copying import check_copyable, set_mode, working_copy


class _EagerRecorder(Recorder):
    """Notes each dispatched operation as a step, with the module that ran it."""

    def __init__(self, ignored: Sequence[Tensor], item_size: int | None, running: Sequence[str]) -> None:
        super().__init__(ignored, item_size)
        self.running = running
        self.steps: list[tuple[str, str, int]] = []
        self.born: dict[int, tuple[int, str, str]] = {}
        self.dies: dict[int, int] = {}

    def on_birth(self, key: int, tensor: Tensor, size: int) -> None:
        super().on_birth(key, tensor, size)
        node, module = self.now
        self.born[self.index_of[key]] = (len(self.steps), node, module)

    def on_death(self, key: int) -> None:
        self.dies[self.index_of[key]] = len(self.steps) - 1
        super().on_death(key)

    @property
    def now(self) -> tuple[str, str]:
        return self.operation, self.running[-1] if self.running else ""

    operation = "input"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operation = func._overloadpacket.__name__
        macs = self.macs
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.steps.append((*self.now, self.macs - macs))
        return out


def profile_eager(
    model: nn.Module, call: Call, inputs: tuple[Tensor, ...], convention: Convention, dtype: str | None
) -> MemoryProfile:
    """Run the module itself under fake tensors: what its own Python frames keep alive is counted.

    A module whose steps depend on the data is run on the example input itself, for fake tensors have none.

    Raises:
        ModelError: it does not run.
    """
    check_copyable(model)
    item_size = ITEM_SIZES[dtype] if dtype else None
    with plain_context(inputs), preserved_generators(), torch.no_grad():
        try:
            recorder = _record_fake(model, call, inputs, item_size)
        except Exception:
            recorder = _record_real(model, call, inputs, item_size)
    return _profile_of(recorder, convention, dtype)


def _record_fake(model: nn.Module, call: Call, inputs: Sequence[Tensor], item_size: int | None) -> _EagerRecorder:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copy = fake_copy(model, mode)
    with quiet_logger("torch._subclasses.fake_tensor"), mode:
        return _record(copy, call, [torch.empty(x.shape, dtype=x.dtype) for x in inputs], item_size)


def _record_real(model: nn.Module, call: Call, inputs: Sequence[Tensor], item_size: int | None) -> _EagerRecorder:
    try:
        return _record(working_copy(model), call, inputs, item_size)
    except Exception as error:
        name = type(model).__name__
        raise ModelError(f"{name} does not run on an input of {format_shapes(inputs)}: {first_line(error)}") from error


def _record(copy: nn.Module, call: Call, inputs: Sequence[Tensor], item_size: int | None) -> _EagerRecorder:
    set_mode(copy, training=False)
    running = _track_modules(copy)
    for _ in until_settled(copy):
        recorder = _EagerRecorder(state_of(copy), item_size, running)
        for tensor in inputs:
            recorder.track(tensor)
        with recorder:
            call.run(copy, inputs)
    return recorder


def _track_modules(copy: nn.Module) -> list[str]:
    """The paths of the modules that run, the innermost last; each part of the copy tells it when it is called."""
    running: list[str] = []

    def run(path: str, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        running.append(path)
        try:
            return part._call_impl(*args, **kwargs)
        finally:
            running.pop()

    for path, part in copy.named_modules():
        part.__dict__["_compiled_call_impl"] = partial(run, path, part)
    return running


def _profile_of(recorder: _EagerRecorder, convention: Convention, dtype: str | None) -> MemoryProfile:
    if not recorder.steps:  # nothing but the inputs is ever alive
        recorder.steps.append(("input", "", 0))
    last = len(recorder.steps) - 1
    buffers = []
    for index, (shape, kind, size) in enumerate(recorder.storages):
        step, node, module = recorder.born[index]
        dies = max(0, recorder.dies.get(index, last))
        name = str(kind).removeprefix("torch.")
        buffers.append(Buffer(node, module, shape, name, size, min(step, last), dies, node == "input"))
    steps = tuple(
        Step(node, module, live, 0, macs)
        for (node, module, macs), live in zip(recorder.steps, live_bytes(buffers, last + 1), strict=True)
    )
    return MemoryProfile(convention, steps, tuple(buffers), None, dtype=dtype)
