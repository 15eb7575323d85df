"""Functions: how each torch function that the teacher calls is recorded, answered, or left alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property, resolve_name
from torch.utils._pytree import tree_map_only

from redistill.tracing.obstacles import DataDependenceError, ObstacleError

if TYPE_CHECKING:
    from redistill.tracing.tracer import Tracer

_SIZES = frozenset(("shape", "itemsize", "nbytes"))  # what a tensor's attributes say of its size
_VIEWS = frozenset(("T", "mT", "H", "mH", "data", "real", "imag"))
_READS = frozenset((
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero",
    "__array__", "__contains__", "__repr__", "__format__", "__str__", "equal", "allclose", "isclose_", "__reduce_ex__",
))  # fmt: skip
_FILLS = frozenset(("full", "new_full", "full_like", "fill_"))
# ``x + y`` comes as ``x.add(y)``: one form for both, and ``a += b`` stays in place.
_OPERATORS: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (operator.add, 2), "sub": (operator.sub, 2), "mul": (operator.mul, 2), "div": (operator.truediv, 2),
    "__truediv__": (operator.truediv, 2), "matmul": (operator.matmul, 2), "neg": (operator.neg, 1),
    "add_": (operator.iadd, 2), "sub_": (operator.isub, 2), "mul_": (operator.imul, 2),
    "div_": (operator.itruediv, 2), "__itruediv__": (operator.itruediv, 2), "pow": (operator.pow, 2),
    "__pow__": (operator.pow, 2), "__floordiv__": (operator.floordiv, 2), "remainder": (operator.mod, 2),
    "__mod__": (operator.mod, 2), "__getitem__": (operator.getitem, 2), "__setitem__": (operator.setitem, 3),
    "__and__": (operator.and_, 2), "__or__": (operator.or_, 2), "__xor__": (operator.xor, 2),
    "__invert__": (operator.invert, 1), "eq": (operator.eq, 2), "__eq__": (operator.eq, 2), "ne": (operator.ne, 2),
    "__ne__": (operator.ne, 2), "lt": (operator.lt, 2), "le": (operator.le, 2), "gt": (operator.gt, 2),
    "ge": (operator.ge, 2), "__lt__": (operator.lt, 2), "__le__": (operator.le, 2), "__gt__": (operator.gt, 2),
    "__ge__": (operator.ge, 2),
}  # fmt: skip
_REVERSED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}  # fmt: skip


class RecordFunctions(TorchFunctionMode):
    """Hands every torch function that reads a traced value to the tracer; all others run as they are."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.is_blind or not _any_leaf((args, kwargs), self.tracer.is_traced):
            return func(*args, **kwargs)
        attribute, action = _attribute_of(func)
        if attribute is not None:
            return self._attribute(func, attribute, action, *args)
        name = getattr(func, "__name__", "")
        if func is torch._assert:
            return None if args[0] else func(bool(args[0]), *args[1:])
        if name in _READS:
            return self._read(func, name, args, kwargs)
        if name in ("__len__", "__iter__") and is_tensor_method_or_property(func):
            return self._each(args[0], name)
        if name in ("dim", "ndimension", "element_size") or (name.startswith("is_") and name != "is_nonzero"):
            return func(*args, **kwargs)
        if name in _FILLS:
            args, kwargs = tree_map_only(Tensor, self._as_number, (args, kwargs))
        try:
            return self.tracer.record(*_as_call(func, name, args, kwargs))
        except DataDependenceError:
            known = self._known(args)
            if known is None:
                raise
            return func(*known, **kwargs)

    def _as_number(self, value: Tensor) -> Any:
        """What is filled with is a number, also where it is read from a tensor that no input decides."""
        known = self.tracer.known(value) if value.dim() == 0 else None
        return value if known is None else known.item()

    def _attribute(self, func: Any, name: str, action: str, tensor: Any, *rest: Any) -> Any:
        """Sizes and views are recorded; the device is the teacher's, not the trace's."""
        if action == "__set__":
            if id(tensor) in self.tracer.state and name == "data":
                raise ObstacleError("the forward overwrites a weight")
            return func(tensor, *rest)
        if id(tensor) in self.tracer.state and name not in _VIEWS:
            return func(tensor)
        if name in _SIZES or name in _VIEWS:
            return self.tracer.record("call_function", getattr, (tensor, name), {})
        answers = {"device": self.tracer.device, "is_meta": False, "is_cuda": self.tracer.device.type == "cuda"}
        return answers[name] if name in answers else func(tensor)

    def _read(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A value can be read where no input decides it."""
        known = self._known(args)
        if known is None:
            raise DataDependenceError.of_value(f"{name.strip('_')}()")
        return func(*known, **kwargs)

    def _known(self, args: tuple[Any, ...]) -> list[Any] | None:
        """The arguments with real values, if no input decides them."""
        known = [self.tracer.known(a) if isinstance(a, Tensor) else a for a in args]
        return None if any(k is None and a is not None for k, a in zip(known, args, strict=True)) else known

    def _each(self, tensor: Tensor, name: str) -> Any:
        count = int(self.tracer.record("call_method", "size", (tensor, 0), {}))
        if name == "__len__":
            return count
        return iter([self.tracer.record("call_function", operator.getitem, (tensor, i), {}) for i in range(count)])


def _as_call(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """Kind, target and arguments of the node that does what ``func`` does."""
    if not is_tensor_method_or_property(func):
        return "call_function", func, args, kwargs
    function, count = _OPERATORS.get(name, (None, 0))
    if function is not None and len(args) == count and not kwargs:
        return "call_function", function, args, kwargs
    if name in _REVERSED and len(args) == 2:
        return "call_function", _REVERSED[name], args[::-1], {}
    return "call_method", name, args, kwargs


@lru_cache(maxsize=4096)
def _attribute_of(func: Any) -> tuple[str | None, str]:
    """The attribute that a getter or setter is of, and which of them it is."""
    action = getattr(func, "__name__", "")
    if action not in ("__get__", "__set__"):
        return None, ""
    return str(resolve_name(func)).split(".")[-2], action


def _any_leaf(tree: Any, test: Callable[[Any], bool]) -> bool:
    if isinstance(tree, Tensor):
        return test(tree)
    if isinstance(tree, dict):
        return any(_any_leaf(branch, test) for branch in tree.values())
    if test(tree):
        return True
    if isinstance(tree, (list, tuple)):
        return any(_any_leaf(branch, test) for branch in tree)
    return isinstance(tree, slice) and _any_leaf((tree.start, tree.stop, tree.step), test)
