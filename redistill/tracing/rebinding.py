"""Rebinding: the teacher's own functions, over names of ours, so that ``int(size)`` and ``math`` stay in the graph.

``int(h)`` must be a number to Python, which would fix it. So the methods of the working copy get globals of their own,
in which ``int``, ``float``, ``max``, ``min`` and ``math`` take sizes as they take numbers, and functions that their
author declared to be one operation (``torch.fx.wrap``) become one node. A function that keeps its results in a cache
(``functools.lru_cache``) runs past it. The teacher's modules and their globals are not touched.
"""

from __future__ import annotations

import builtins
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace

from redistill.tracing.sizes import SizeBool, SizeFloat, SizeInt, is_size

Function = types.FunctionType
_CACHED = functools._lru_cache_wrapper
_MATH = {name: value for name, value in vars(math).items() if callable(value)}


class Rebinder:
    """Gives modules methods that see our names in place of Python's."""

    def __init__(self, record: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self.record = record
        self.needed: dict[Function, bool] = {}
        self.rebound: dict[Function, Function] = {}
        self.spaces: dict[int, _Globals] = {}
        self.inlined: dict[str, None] = {}  # functions whose own backward a graph does not know

    def rebind(self, module: nn.Module) -> None:
        """Rebind those methods and functions of ``module`` that make numbers, or call what they must not enter."""
        for name, value in list(module.__dict__.items()):
            module.__dict__[name] = self.value_of(value)
        for kind in reversed(type(module).__mro__):
            if not kind.__module__.startswith(("torch.", "builtins")):
                for name, method in vars(kind).items():
                    self._rebind_method(module, name, method)

    def _rebind_method(self, module: nn.Module, name: str, method: Any) -> None:
        function = method.__func__ if isinstance(method, (staticmethod, classmethod)) else method
        if name.startswith("__") or not self._is_function_of_ours(function):
            return
        found = self.value_of(function)
        of = type(module) if isinstance(method, classmethod) else module
        module.__dict__[name] = found if isinstance(method, staticmethod) else types.MethodType(found, of)

    def needs(self, function: Function) -> bool:
        """Whether the function, or one of its own module that it calls, uses a name of ours."""
        if function not in self.needed:
            self.needed[function] = False  # while it is looked at: it may call itself
            space = function.__globals__
            ours = any(self._is_ours(space, name) for name in _names(function.__code__))
            self.needed[function] = ours or any(map(self._is_function_of_ours, _enclosed(function)))
        return self.needed[function]

    def _is_function_of_ours(self, value: Any) -> bool:
        if isinstance(value, _CACHED):
            return isinstance(value.__wrapped__, Function)
        return isinstance(value, Function) and not _is_torch(value) and self.needs(value)

    def value_of(self, value: Any) -> Any:
        """A function over our names, if it needs them, and past its cache, if it has one; anything else as it is."""
        if isinstance(value, _CACHED):  # which must not keep what a trace yields
            return self.value_of(value.__wrapped__)
        return self.function(value) if self._is_function_of_ours(value) else value

    def _is_ours(self, space: dict[str, Any], name: str) -> bool:
        if name not in space:
            return name in _BUILTINS
        value = space[name]
        if value is math or _has_backward(value) or self._is_one_operation(space, name) or _is_math(value):
            return True
        return self._is_function_of_ours(value)

    def _is_one_operation(self, space: dict[str, Any], name: str) -> bool:
        """What its author declared to be one, and what lays out a tensor by a pattern, from sizes kept in a cache."""
        return (id(space), name) in _symbolic_trace._wrapped_fns_to_patch or is_of_einops(space[name])

    def function(self, function: Function) -> Function:
        """The same code over our names."""
        if function not in self.rebound:
            space = self.spaces.setdefault(id(function.__globals__), _Globals(self, function.__globals__))
            closure = tuple(types.CellType() for _ in function.__closure__ or ())
            twin = Function(function.__code__, space, function.__name__, function.__defaults__, closure or None)
            twin.__kwdefaults__ = function.__kwdefaults__
            self.rebound[function] = twin  # before its cells are filled: one of them may hold the function itself
            for cell, own in zip(closure, function.__closure__ or (), strict=True):
                for value in _held(own):
                    cell.cell_contents = self.value_of(value)
        return self.rebound[function]

    def value(self, space: dict[str, Any], name: str) -> Any:
        """What a global name means in a rebound function."""
        value = space[name]
        if self._is_one_operation(space, name):
            return lambda *args, **kwargs: self.record(value, args, kwargs)
        if _has_backward(value):
            self.inlined[value.__name__] = None
        if value is math:
            return _MATH_OF_SIZES
        if _is_math(value):
            return _of_sizes(value)
        return self.value_of(value)


class _Globals(dict[str, Any]):
    """A function's globals as they are at each look, some of them replaced."""

    def __init__(self, rebinder: Rebinder, space: dict[str, Any]) -> None:
        super().__init__({name: space[name] for name in ("__name__", "__package__", "__spec__") if name in space})
        self["__builtins__"] = {**vars(builtins), **_BUILTINS}
        self.rebinder, self.space = rebinder, space

    def __missing__(self, name: str) -> Any:
        return self.rebinder.value(self.space, name)


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _held(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not filled yet
        return []


def _enclosed(function: Function) -> list[Any]:
    return [value for cell in function.__closure__ or () for value in _held(cell)]


def _is_torch(function: Function) -> bool:
    return (function.__module__ or "").startswith("torch.")


def _has_backward(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.autograd.Function)


def is_of_einops(value: Any) -> bool:
    """Whether a function or class is one of einops."""
    return isinstance(value, (Function, type)) and (value.__module__ or "").partition(".")[0] == "einops"


def _is_math(value: Any) -> bool:
    return isinstance(value, types.BuiltinFunctionType) and value.__module__ == "math"


def _of_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, recorded where it takes a size."""

    def call(*args: Any, **kwargs: Any) -> Any:
        size = next((a for a in args if is_size(a) and hasattr(a, "read")), None)
        return function(*args, **kwargs) if size is None else size.tracer.record("call_function", function, args, {})

    return call


class _NumberType(type):
    """Stands for ``int`` or ``float``: the same type to whoever asks, but a size that is converted stays a size."""

    plain: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not args or type(args[0]) not in (SizeInt, SizeFloat, SizeBool):
            return cls.plain(*args, **kwargs)
        size = args[0]
        return size if type(size.value) is cls.plain else size.tracer.record("call_function", cls.plain, (size,), {})

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.plain)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.plain)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.plain

    def __hash__(cls) -> int:
        return hash(cls.plain)


class _Int(int, metaclass=_NumberType):
    plain = int


class _Float(float, metaclass=_NumberType):
    plain = float


_BUILTINS: dict[str, Any] = {"int": _Int, "float": _Float, "max": _of_sizes(max), "min": _of_sizes(min)}
_MATH_OF_SIZES = types.SimpleNamespace(**{**vars(math), **{name: _of_sizes(f) for name, f in _MATH.items()}})
