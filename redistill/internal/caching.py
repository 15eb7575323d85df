"""Methods that remember what they found, as long as their object lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Given = ParamSpec("Given")
Found = TypeVar("Found")


def cached_method(
    method: Callable[Concatenate[Owner, Given], Found],
) -> Callable[Concatenate[Owner, Given], Found]:
    """Keep a method's results with its object; ``functools.cache`` would keep the object itself, for good.

    >>> class Squares:
    ...     @cached_method
    ...     def of(self, number: int) -> int:
    ...         print("computed")
    ...         return number**2
    >>> squares = Squares()
    >>> squares.of(3), squares.of(3)
    computed
    (9, 9)
    """
    name = f"_found_by_{method.__name__}"

    @wraps(method)
    def ask(self: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        found = self.__dict__.setdefault(name, {})
        key = (args, tuple(kwargs.items()))
        if key not in found:
            found[key] = method(self, *args, **kwargs)
        result: Found = found[key]
        return result

    return ask
