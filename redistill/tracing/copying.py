"""Copying: a module's structure made anew, its tensors shared, cloned or moved to ``meta`` as the caller says."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from redistill.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def working_copy(module: M) -> M:
    """Copy ``module`` so that running the copy leaves it as it is: parameters are shared, all other tensors cloned."""
    return _Copier(lambda t: t if isinstance(t, nn.Parameter) else t.detach().clone()).module(module)


def meta_copy(module: M) -> M:
    """Copy ``module`` with every tensor on ``meta``: no weight is copied."""
    return _Copier(_on_meta).module(module)


def map_tensors(module: M, function: Callable[[Tensor], Tensor]) -> M:
    """Copy ``module`` with ``function`` of every tensor in it."""
    return _Copier(function).module(module)


def clone(module: M, shares_tensors: bool = False) -> M:
    """Copy ``module`` with tensors of its own, or the same ones; what Python cannot copy (locks, handles) is shared."""
    copier = _Copier(_same if shares_tensors else _cloned)
    if not isinstance(module, GraphModule):
        return copier.module(module)
    for part in (*module._parameters.values(), *module._buffers.values(), *module._modules.values()):
        copier.value(part)
    return copy.deepcopy(module, copier.memo)  # it finds its parts copied, and copies its graph


def set_mode(module: nn.Module, training: bool) -> None:
    """Put ``module`` into train or eval mode by its own rules, if it has any that can be called."""
    try:
        module.train(training)
    except NotImplementedError:  # an exported program
        for part in module.modules():
            part.training = training


def shallow_copy(module: M) -> M:
    """Copy one module: its settings are its own, its tables of tensors and children the very same.

    ``copy.copy`` does so too, but for modules with parametrizations, which refuse it.
    """
    twin: M = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def in_mode(module: M, training: bool) -> M:
    """Copy ``module`` in a mode of its own, over the very same tensors, whatever becomes of them."""
    copies: dict[nn.Module, nn.Module] = {}
    for part in module.modules():
        copies[part] = shallow_copy(part)
        copies[part].training = training
    for part in copies.values():
        part._modules = {name: None if child is None else copies[child] for name, child in part._modules.items()}
    return cast(M, copies[module])


def with_plain_weights(module: M) -> M:
    """Copy one module with what its parametrizations yield now as plain parameters; as it is if it has none.

    Norms and masks of weights that are hooks, as they were before parametrizations, count as such.
    """
    hooks = {key: hook for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _WEIGHT_HOOKS)}
    if not is_parametrized(module) and not hooks:
        return module
    twin: M = object.__new__(type_before_parametrizations(module))
    twin.__dict__.update(module.__dict__)
    modules, parameters, buffers = dict(module._modules), dict(module._parameters), dict(module._buffers)
    for name in modules.pop("parametrizations", None) or ():  # type: ignore[union-attr]
        parameters[name] = nn.Parameter(getattr(module, name).detach().clone())
    for hook in hooks.values():
        name, value = _yielded_by(hook, module)
        for table in (parameters, buffers):
            for suffix in ("g", "v", "u", "orig", "mask"):
                table.pop(f"{name}_{suffix}", None)
        parameters[name] = nn.Parameter(value.detach().clone())
        twin.__dict__.pop(name, None)
    left = OrderedDict((key, hook) for key, hook in module._forward_pre_hooks.items() if key not in hooks)
    twin.__dict__.update(_modules=modules, _parameters=parameters, _buffers=buffers, _forward_pre_hooks=left)
    return twin


_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)


def _yielded_by(hook: Any, module: nn.Module) -> tuple[str, Tensor]:
    """The name of the weight that a hook of torch's makes before each call, and what it makes it."""
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, hook.apply_mask(module)  # type: ignore[no-untyped-call]
    if isinstance(hook, SpectralNorm):
        return hook.name, hook.compute_weight(module, do_power_iteration=False)
    return hook.name, hook.compute_weight(module)


def check_copyable(module: nn.Module) -> None:
    """Refuse what has no Python code or no weights to trace with.

    Raises:
        ModelError: TorchScript, lazy parameters, quantised modules, or a submodule whose name no graph can have.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module holds no Python modules that could be rewritten; give the model that was scripted or "
            "traced"
        )
    for name in module._modules.keys() & _KEPT_BY_GRAPHS:
        raise ModelError(
            f"the model's submodule {name} bears a name that torch.fx keeps for itself; rename it, or give the model "
            "as nn.Sequential(model)"
        )
    for path, part in module.named_modules():
        where = f"{path or 'the model'} ({type(part).__name__})"
        if isinstance(part, torch.jit.ScriptModule) and next(part.parameters(), None) is not None:
            raise ModelError(f"{where} is TorchScript, whose weights no graph can hold; give what it was scripted from")
        if any(nn.parameter.is_lazy(t) for t in (*part._parameters.values(), *part._buffers.values())):
            raise ModelError(f"{where} is lazy and has no weights yet; run the model once before")
        if type(part).__module__.startswith("torch.ao.nn.") and hasattr(part, "_packed_params"):
            raise ModelError(
                f"{where} is quantised: its weights are integers, which no other stride fits and no training moves; "
                "give the model before quantisation, and quantise the student"
            )


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile`` makes of a module, which it holds as ``_orig_mod``."""
    return type(module).__module__ == "torch._dynamo.eval_frame" and "_orig_mod" in module._modules


class Uncompiled(nn.Module):
    """Runs the module that was compiled, as it was."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original module yields."""
        return self.get_submodule("_orig_mod")(*args, **kwargs)


class _Copier:
    """Copies modules by their own rules, tensors by ``tensor``, and everything else as Python does, where it can."""

    def __init__(self, tensor: Callable[[Tensor], Tensor]) -> None:
        self.tensor = tensor
        self.memo: dict[int, Any] = {}
        self.kept: list[Any] = []  # an address is known only as long as what lives there

    def module(self, module: M) -> M:
        kind: type[Any] = Uncompiled if is_compiled(module) else type(module)
        twin: M = object.__new__(kind)
        self.memo[id(module)] = twin
        for name, value in module.__dict__.items():
            if name in ("forward", "dynamo_ctx") and kind is Uncompiled:
                continue
            if type(value) in (dict, OrderedDict) and not value:
                self.memo.setdefault(id(value), type(value)())
            twin.__dict__[name] = self.value(value)
        twin.__dict__["_compiled_call_impl"] = None
        return twin

    def value(self, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        if id(value) not in self.memo:
            self.kept.append(value)
            self.memo[id(value)] = self._copy(value)
        return self.memo[id(value)]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.jit.ScriptModule):
            return value
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.value(value.__self__))
        if type(value) is functools.partial:
            kwargs = {key: self.value(v) for key, v in value.keywords.items()}
            return functools.partial(self.value(value.func), *map(self.value, value.args), **kwargs)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.value, value))
        if type(value) in (dict, OrderedDict, defaultdict):
            return self._mapping(value)
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # a lock, a stream, an open file: there is but one
            return self._part_by_part(value) if _is_plain_object(value) else value

    def _part_by_part(self, value: Any) -> Any:
        """An object that Python does not copy, for what it holds: a map with its gradient, kept by a hook."""
        twin = self.memo[id(value)] = object.__new__(type(value))
        vars(twin).update({name: self.value(held) for name, held in vars(value).items()})
        return twin

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function over the copies of what it encloses, such as a hook that writes into a dict of its module."""
        if not _has_state(function):
            return function
        cells, defaults = function.__closure__ or (), function.__defaults__ or ()
        closure = tuple(types.CellType() for _ in cells)
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure or None)
        self.memo[id(function)] = twin  # before its cells are filled: one of them may hold the function itself
        twin.__dict__.update(function.__dict__)
        twin.__kwdefaults__, twin.__module__ = function.__kwdefaults__, function.__module__
        twin.__defaults__ = tuple(self.value(v) if _has_state(v) else v for v in defaults) or None
        for cell, own in zip(closure, cells, strict=True):
            for value in filled_by((own,)):
                cell.cell_contents = self.value(value) if _has_state(value) else value
        return twin

    def _mapping(self, mapping: dict[Any, Any]) -> dict[Any, Any]:
        twin = self.memo[id(mapping)] = mapping.copy()
        for key, value in mapping.items():
            dict.__setitem__(twin, key, self.value(value))
        return twin


def filled_by(cells: Sequence[types.CellType]) -> list[Any]:
    """What the cells of a closure hold, but for those not filled yet."""
    found = []
    for cell in cells:
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _has_state(value: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a run may change what a function encloses, or what a function there does."""
    if isinstance(value, types.FunctionType):
        known = id(value) in seen or value.__module__.startswith("torch.")
        enclosed = (*filled_by(value.__closure__ or ()), *(value.__defaults__ or ()))
        return not known and any(_has_state(held, seen | {id(value)}) for held in enclosed)
    return isinstance(value, (nn.Module, dict, list, set, types.MethodType, functools.partial))


def _is_plain_object(value: Any) -> bool:
    """Whether an object is of a class written in Python that leaves it to Python how its objects are copied."""
    kind = type(value)
    own = any(name in vars(base) for base in kind.__mro__[:-1] for name in ("__reduce__", "__reduce_ex__", "__slots__"))
    return kind.__flags__ & _HEAP_TYPE != 0 and hasattr(value, "__dict__") and not own


_HEAP_TYPE = 1 << 9
_KEPT_BY_GRAPHS = frozenset((*vars(GraphModule), "meta", "_graph")) - vars(nn.Module).keys()
_ATOMS = frozenset((
    int, float, complex, bool, str, bytes, type, type(None), types.BuiltinFunctionType,
    types.ModuleType, Graph, torch.dtype, torch.device, torch.Size,
))  # fmt: skip


def _on_meta(tensor: Tensor) -> Tensor:
    empty = tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _cloned(tensor: Tensor) -> Tensor:
    own = tensor.detach().clone()
    return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
