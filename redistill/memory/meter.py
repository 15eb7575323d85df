"""The measuring meter: the bytes of activations alive at once, counted while a module runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from redistill.tracing.call import read_call
from redistill.tracing.contexts import plain_context, preserved_generators
from redistill.tracing.copying import working_copy
from redistill.tracing.deployed import deployed_form


class MemoryMeter(TorchDispatchMode):
    """Adds the bytes of every new storage and subtracts them when the last reference to it goes.

    Works on real and on fake tensors. Storages of ``ignored`` tensors (parameters, buffers) and all views of them cost
    nothing. The workspace that a backend takes inside one kernel is not seen: it is the backend's property.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._ignored = {t.untyped_storage()._cdata for t in ignored}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def track(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` from now until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._ignored:
            return
        size = self.size_of(tensor)

        def release(_: object) -> None:
            del self._alive[key]
            self.live_bytes -= size
            self.on_death(key)

        self._alive[key] = weakref.ref(storage, release)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.on_birth(key, tensor, size)

    def size_of(self, tensor: Tensor) -> int:
        """Bytes of the tensor's whole storage."""
        return tensor.untyped_storage().nbytes()

    def on_birth(self, key: int, tensor: Tensor, size: int) -> None:
        """Called when a storage is first seen."""

    def on_death(self, key: int) -> None:
        """Called when a storage has gone."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                self.track(item)
        return out


def state_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers: what is not an activation."""
    return [*module.parameters(), *module.buffers()]


def measure(model: nn.Module, example_inputs: Any) -> int:
    """Peak bytes of activations while ``model`` runs as it is on ``example_inputs``, which count throughout.

    Args:
        model: any module, eager or a ``GraphModule``; a copy of it is run, in the mode it is in, so that neither its
            buffers nor its caches change.
        example_inputs: a tensor, a tuple of arguments or a mapping of them by keyword, on the model's device.

    Returns:
        Bytes. Gradients are off (but not in inference mode, which would hide the indices of max pooling).

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
        >>> measure(model, torch.zeros(1, 3, 16, 16))  # the image, the convolution's map and the activation's
        19456
    """
    call, inputs = read_call(model, example_inputs)
    twin = working_copy(model)
    with plain_context(inputs), preserved_generators(), torch.no_grad():
        for _ in until_settled(twin):
            meter = MemoryMeter(state_of(twin))
            for tensor in inputs:
                meter.track(tensor)
            with meter:
                call.run(twin, inputs)
    return meter.peak_bytes


def until_settled(module: nn.Module) -> Iterator[None]:
    """Once; and again if the first run has left something in ``module``, such as a cache that a second run reads."""
    runs = deployed_form(module) if isinstance(module, GraphModule) else module
    before = _attributes(runs)
    yield
    if _attributes(runs) != before:
        yield


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What each part of ``module`` holds, by identity."""
    held = {}
    for path, part in module.named_modules():
        for name, value in part.__dict__.items():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            held[f"{path}.{name}"] = (id(value), *map(id, inner))
    return held
