"""Sources: torch keeps the source of every graph that it compiles for good; here it goes when the graph goes."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule
from torch.fx.graph_module import _loader


@contextmanager
def passing_sources(kept: list[Any]) -> Iterator[None]:
    """Forget the sources of graphs that are compiled inside, but for those in ``kept``, which are forgotten with them.

    A source is for showing lines of generated code in a traceback; no graph needs it to run.
    """
    before = set(_loader.eval_cache)
    try:
        yield
    finally:
        found = {_key(value): value for value in kept if isinstance(value, GraphModule)}
        _forget(set(_loader.eval_cache) - before - found.keys())
        for key, value in found.items():
            weakref.finalize(value, _forget, (key,)).atexit = False


def _key(graph_module: GraphModule) -> str:
    code = getattr(type(graph_module).forward, "__code__", None)
    return str(getattr(code, "co_filename", ""))


def _forget(keys: Iterable[str]) -> None:
    for key in keys:
        _loader.eval_cache.pop(key, None)
        linecache.cache.pop(key, None)
