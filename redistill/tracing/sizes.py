"""Sizes: numbers that come out of a graph. They act as the numbers they are, and remember which node yields them.

Arithmetic on them is recorded, so that a graph runs at other resolutions. Where Python needs a number for good
(``if``, ``int``, ``range``, an index, a key), it gets one, and a *guard* notes what was read, and where.
torch's argument parsers take them, for they are symbolic numbers to them, and leave their reading to the tracer.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from redistill.tracing.guards import exactly, guard_node, user_place


class Recorder(Protocol):
    """What a size needs of the tracer.

    ``reads_text`` says whether a size that is made text is read for good; once the trace is ``closed``, sizes that a
    cache has kept are plain numbers.
    """

    reads_text: bool
    closed: bool

    def record(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an operation and return what it yields."""

    def node(self, target: Any, args: tuple[Any, ...], value: Any) -> Node:
        """Record an operation whose value is known."""


class _Size:
    """A value with the node that yields it, which is made when it is first needed."""

    def __init__(self, tracer: Recorder, value: Any, source: Node | Callable[[], Node]) -> None:
        self.tracer, self.value, self.source = tracer, value, source
        self.made: Node | None = source if isinstance(source, Node) else None

    @property
    def origin(self) -> Node:
        """The graph node that yields the value."""
        if self.made is None or self.made._erased:
            assert callable(self.source), "a size outlived the trace it belongs to"
            self.made = self.source()
        return self.made

    @property  # type: ignore[misc]  # isinstance(h, int) in the teacher's code is answered by the value
    def __class__(self) -> type:
        return type(self.value)

    def read(self, convert: Callable[[Any], Any]) -> Any:
        """The value itself, noted as a guard: the graph is right only while it stays the same."""
        if self.tracer.closed:
            return convert(self.value)
        return guard_node(self.origin, self.value, convert, user_place(sys._getframe(1)))

    @property
    def node(self) -> _Reading:
        """What C++ asks for a number that reaches it past the tracer."""
        return _Reading(self)

    def __bool__(self) -> bool:
        return bool(self.read(bool))

    def __int__(self) -> int:
        return int(self.read(int))

    def __float__(self) -> float:
        return float(self.read(float))

    def __index__(self) -> int:
        return int(self.read(operator.index))

    def __hash__(self) -> int:
        return hash(self.read(exactly))

    def __repr__(self) -> str:
        return repr(self._shown())

    def __format__(self, spec: str) -> str:
        return format(self._shown(), spec)

    def _shown(self) -> Any:
        """The value as text: mostly of a message that nobody reads, but it may be the key of a cache."""
        return self.read(exactly) if self.tracer.reads_text else self.value


class _Reading:
    """A symbolic number to torch's C++, which gets the number itself, and leaves a guard."""

    def __init__(self, size: _Size) -> None:
        self.size = size

    def guard_int(self, *_: Any) -> int:
        """A whole number."""
        return int(self.size.read(operator.index))

    def guard_float(self, *_: Any) -> float:
        """A floating-point number."""
        return float(self.size.read(float))

    def guard_bool(self, *_: Any) -> bool:
        """A truth value."""
        return bool(self.size.read(bool))

    int_ = maybe_as_int = guard_int
    float_ = guard_float
    bool_ = expect_true = guard_size_oblivious = guard_or_false = guard_or_true = guard_bool

    def is_int(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.size, int)

    def is_float(self) -> bool:
        """Whether it is a floating-point number."""
        return isinstance(self.size, float)

    def is_bool(self) -> bool:
        """Whether it is a truth value."""
        return isinstance(self.size, bool)


def _binary(function: Callable[..., Any], swapped: bool = False) -> Callable[[Any, Any], Any]:
    def record(self: _Size, other: Any) -> Any:
        if isinstance(other, (Tensor, tuple, list)):
            return NotImplemented
        if self.tracer.closed:
            return function(other, self.value) if swapped else function(self.value, other)
        return self.tracer.record("call_function", function, (other, self) if swapped else (self, other), {})

    return record


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def record(self: _Size, *rest: Any) -> Any:
        if self.tracer.closed:
            return function(self.value, *rest)
        return self.tracer.record("call_function", function, (self, *rest), {})

    return record


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"):
    _function, _slot = getattr(operator, _name), _name.strip("_")
    setattr(_Size, f"__{_slot}__", _binary(_function))
    setattr(_Size, f"__r{_slot}__", _binary(_function, swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(_Size, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(_Size, f"__{_name}__", _unary(getattr(operator, _name)))
for _function in (math.ceil, math.floor, math.trunc, round):
    setattr(_Size, f"__{_function.__name__}__", _unary(_function))


def _divmod(self: Any, other: Any) -> tuple[Any, Any]:
    return self // other, self % other


class SizeInt(_Size, torch.SymInt):  # type: ignore[misc]
    """A whole number that a graph yields."""

    __divmod__ = _divmod
    __hash__ = _Size.__hash__


class SizeFloat(_Size, torch.SymFloat):  # type: ignore[misc]
    """A floating-point number that a graph yields."""

    __divmod__ = _divmod
    __hash__ = _Size.__hash__

    def is_integer(self) -> bool:
        """Whether it is a whole number."""
        return bool(self.read(exactly).is_integer())


class SizeBool(_Size, torch.SymBool):  # type: ignore[misc]
    """A truth value that a graph yields."""

    __hash__ = _Size.__hash__


class SizeTuple(tuple[Any, ...]):
    """A shape, or other numbers that a graph yields together."""

    tracer: Recorder
    value: Any
    size: _Size

    @classmethod
    def of(cls, tracer: Recorder, value: Any, source: Node | Callable[[], Node]) -> SizeTuple:
        """Wrap ``value``; a number in it gets a node of its own when it is needed."""
        whole = _Size(tracer, value, source)

        def part(index: Any) -> Callable[[], Node]:
            return lambda: tracer.node(operator.getitem, (whole.origin, index), value[index])

        found = cls(wrap_number(tracer, number, part(i)) for i, number in enumerate(value))
        found.tracer, found.value, found.size = tracer, value, whole
        return found

    @property
    def origin(self) -> Node:
        """The graph node that yields the numbers."""
        return self.size.origin

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(operator.index(index))
        bounds = (index.start, index.stop, index.step)
        fixed = slice(*(None if b is None else operator.index(b) for b in bounds))
        value = self.value[fixed]
        return SizeTuple.of(self.tracer, value, lambda: self.tracer.node(operator.getitem, (self.origin, fixed), value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (tuple, list)):
            return False
        return len(self) == len(other) and all(bool(a == b) for a, b in zip(self, other, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Any) -> tuple[Any, ...]:
        return (*self, *other)

    def __radd__(self, other: Any) -> tuple[Any, ...]:
        return (*other, *self)

    def numel(self) -> Any:
        """The product of all sizes."""
        return math.prod(self)


def wrap_number(tracer: Recorder, value: Any, source: Node | Callable[[], Node]) -> Any:
    """The proxy of a number; anything else as it is."""
    for kind, proxy in ((bool, SizeBool), (int, SizeInt), (float, SizeFloat)):
        if isinstance(value, kind):
            return proxy(tracer, value, source)
    return value


def is_size(value: Any) -> bool:
    """Whether ``value`` is a number, or a tuple of numbers, that a graph yields."""
    return type(value) in (SizeInt, SizeFloat, SizeBool, SizeTuple)
