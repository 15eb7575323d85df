"""Contexts: whatever modes the caller has switched on, inside it is as outside them all."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from redistill.tracing.sources import passing_sources

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def plain_context(inputs: Iterable[Any] = ()) -> Iterator[None]:
    """Leave inference mode, autocast, fake tensors and a default device of ``meta``, in this thread, for a while.

    Args:
        inputs: tensors whose devices' autocast is left too.
    """
    devices = {"cpu", *(x.device.type for x in inputs if isinstance(x, Tensor))} - {"meta"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(unset_fake_temporarily())
        for device in sorted(devices):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        yield


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Run ``function`` in a plain context: it yields the same whatever modes the caller has switched on.

    It leaves nothing behind but its result.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        kept: list[Any] = []
        with passing_sources(kept), plain_context():
            result = function(*args, **kwargs)
            kept.append(result)
        return result

    return call


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Put the generators of torch, NumPy and Python back where they were, if anything has drawn from them."""
    before = _generator_states()
    try:
        yield
    finally:
        for name, state in _generator_states().items():
            if not _same(state, before[name]):
                _RESTORE[name](before[name])


def _generator_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


_RESTORE: dict[str, Callable[[Any], None]] = {
    "torch": torch.set_rng_state,
    "numpy": np.random.set_state,
    "python": random.setstate,
    "cuda": torch.cuda.set_rng_state_all,
}


def _same(state: Any, other: Any) -> bool:
    if isinstance(state, (tuple, list)):
        return len(state) == len(other) and all(map(_same, state, other))
    return bool(np.array_equal(state, other))
