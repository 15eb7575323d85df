"""Running passes: what each requires, the pass itself, what it ensures; ours and a user's own the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from redistill.errors import PassError, RedistillError
from redistill.internal.plugins import import_object, is_path

Pass = Callable[[GraphModule], Any]
"""A ``torch.fx`` ``PassBase``, or any function that changes a graph in place or returns another."""


def run_passes(graph_module: GraphModule, passes: Iterable[Pass]) -> GraphModule:
    """Run ``passes`` one after the other and return the graph that the last one left.

    Raises:
        RedistillError: what a pass of ours finds, as it is.
        PassError: any other failure; the message names the pass and those before it.
    """
    done: list[str] = []
    for each in passes:
        try:
            graph_module = _left_by(each(graph_module), graph_module)
        except RedistillError:
            raise
        except Exception as error:
            before = f" after {', '.join(done)}" if done else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise PassError(f"the pass {pass_name(each)} failed{before}: {reason}") from error
        done.append(pass_name(each))
    return graph_module


def _left_by(result: Any, given: GraphModule) -> GraphModule:
    found = given if result is None else result.graph_module if isinstance(result, PassResult) else result
    if not isinstance(found, GraphModule):
        raise TypeError(f"it returned a {type(found).__name__}; return a PassResult, a GraphModule or nothing")
    return found


def find_passes(passes: Iterable[Any]) -> tuple[Pass, ...]:
    """Take passes as objects, as classes without options, or as ``package.module:Name``.

    Raises:
        PassError: something that cannot be imported or called.
    """
    return tuple(map(_find_pass, passes))


def _find_pass(given: Any) -> Pass:
    if isinstance(given, str):
        if not is_path(given):
            raise PassError(f"there is no pass {given!r}; your own is written package.module:Name")
        given = import_object(given, "pass", PassError)
    if isinstance(given, type) and issubclass(given, PassBase):
        given = given()
    if not callable(given):
        raise PassError(f"{given!r} is no pass; give a torch.fx PassBase, or a function of a GraphModule")
    return given  # type: ignore[no-any-return]


def pass_name(given: Pass) -> str:
    """Where a pass comes from, as ``package.module:Name``."""
    kind = given if hasattr(given, "__qualname__") else type(given)
    return f"{kind.__module__}:{kind.__qualname__}"
