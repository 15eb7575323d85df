"""The ``eager`` convention: a module as it is, run on fake tensors, each dispatched operation one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.module_tracker import ModuleTracker

from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import Buffer, MemoryProfile, Step, live_bytes
from redistill.memory.meter import state_of
from redistill.memory.recording import ITEM_SIZES, Recorder, fake_copy
from redistill.tracing.call import Call


class _EagerRecorder(Recorder):
    """Notes each dispatched operation as a step, with the module that ran it."""

    def __init__(self, ignored: Sequence[Tensor], item_size: int | None, modules: ModuleTracker, root: str) -> None:
        super().__init__(ignored, item_size)
        self.modules = modules
        self.root = root
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
        deepest = max((p for p in self.modules.parents if p != "Global"), key=len, default="")
        return self.operation, deepest.removeprefix(self.root).lstrip(".")

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
    """Run the module itself under fake tensors: what its own Python frames keep alive is counted."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copy = fake_copy(model, mode).eval()
    with torch.no_grad(), mode, ModuleTracker() as modules:
        item_size = ITEM_SIZES[dtype] if dtype else None
        recorder = _EagerRecorder(state_of(copy), item_size, modules, type(copy).__name__)
        fakes = [torch.empty(x.shape, dtype=x.dtype) for x in inputs]
        for fake in fakes:
            recorder.track(fake)
        with recorder:
            call.run(copy, fakes)
    if not recorder.steps:  # nothing but the inputs is ever alive
        recorder.steps.append(("input", "", 0))
    last = len(recorder.steps) - 1
    buffers = []
    for index, (shape, kind, size) in enumerate(recorder.storages):
        step, node, module = recorder.born[index]
        dies = recorder.dies.get(index, last)
        name = str(kind).removeprefix("torch.")
        buffers.append(Buffer(node, module, shape, name, size, min(step, last), dies, node == "input"))
    steps = tuple(
        Step(node, module, live, 0, macs)
        for (node, module, macs), live in zip(recorder.steps, live_bytes(buffers, last + 1), strict=True)
    )
    return MemoryProfile(convention, steps, tuple(buffers), None, dtype=dtype)
