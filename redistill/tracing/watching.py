"""Watching: which operators run below what Python calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WINDOWS = re.compile(r"aten::(convolution|(max|avg)_pool\dd)")
_UNSIZED = frozenset((torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output))
_NAMES = {torch.ops.aten._unique2.default: "unique", torch.ops.aten._local_scalar_dense.default: "item"}
_NEW_SIZE = "get_ctx"  # what the meta kernel of an extension asks for where a size depends on the data


class WatchOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether something slides over a grid (a convolution, or a pool with a kernel), and what ran last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slides = False
        self.last: Any = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.slides = self.slides or _WINDOWS.match(func._schema.name) is not None
        self.last = func
        return func(*args, **(kwargs or {}))


def unsized_operator(error: Exception, run: Callable[[], Any]) -> str | None:
    """The operator at which ``run`` raised ``error`` on meta tensors, if the size of its output depends on the data.

    It is ``item`` where a value is read.
    """
    watch = WatchOperators()
    with suppress(Exception), watch:
        run()
    last = watch.last
    if last is None or (_UNSIZED.isdisjoint(last.tags) and _NEW_SIZE not in str(error)):
        return None
    if last is torch.ops.aten.index.Tensor:
        return "an index by a mask" if isinstance(error, NotImplementedError) else None
    return _NAMES.get(last) or str(last._schema.name).rpartition(":")[2]
