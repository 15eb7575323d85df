"""Leaves: which modules become one node by what they are, and are not traced through."""

from __future__ import annotations

import inspect

from torch import nn

from redistill.tracing.rebinding import is_of_einops

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module, leaf_modules: tuple[type[nn.Module], ...]) -> bool:
    """Instances of torch.nn layers, and childless modules with a train/eval behaviour of their own but no state."""
    if isinstance(module, leaf_modules):
        return True
    if isinstance(module, _CONTAINERS):
        return False
    if any(c.__module__.startswith(("torch.nn", "torch.jit")) for c in type(module).__mro__ if c is not nn.Module):
        return True
    if is_of_einops(type(module)):
        return True
    return next(module.children(), None) is None and not _has_state(module) and _reads_training(module)


def is_layer(module: nn.Module) -> bool:
    """Whether a module has state but no children."""
    return not isinstance(module, _CONTAINERS) and next(module.children(), None) is None and _has_state(module)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _reads_training(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names
