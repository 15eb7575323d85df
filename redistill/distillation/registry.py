"""The methods by name, and making one of a word, of options, or of one's own class."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from redistill.config.checks import NotNegative, shorten
from redistill.config.files import convert
from redistill.distillation.method import DistillationMethod
from redistill.distillation.methods.ab import AB
from redistill.distillation.methods.at import AT
from redistill.distillation.methods.cc import CC
from redistill.distillation.methods.crd import CRD
from redistill.distillation.methods.dkd import DKD
from redistill.distillation.methods.fitnet import FitNet
from redistill.distillation.methods.fsp import FSP
from redistill.distillation.methods.ft import FT
from redistill.distillation.methods.kd import KD
from redistill.distillation.methods.kdsvd import KDSVD
from redistill.distillation.methods.mlld import MLLD
from redistill.distillation.methods.mse import MSE
from redistill.distillation.methods.nst import NST
from redistill.distillation.methods.ofd import OFD
from redistill.distillation.methods.pkt import PKT
from redistill.distillation.methods.red import RED
from redistill.distillation.methods.reentry import Reentry
from redistill.distillation.methods.reviewkd import ReviewKD
from redistill.distillation.methods.rkd import RKD
from redistill.distillation.methods.scaffold import Scaffold
from redistill.distillation.methods.sp import SP
from redistill.distillation.methods.stage import Stage
from redistill.distillation.methods.stage_maps import StageMaps
from redistill.distillation.methods.vid import VID
from redistill.distillation.share import MAIN, SHARE_OPTIONS, Share
from redistill.errors import ConfigError, RedistillError
from redistill.internal.plugins import find
from redistill.internal.suggestions import suggest

_OURS: tuple[type[DistillationMethod], ...] = (RED, Scaffold, Stage, KD, MSE, Reentry, StageMaps)
_FEATURES: tuple[type[DistillationMethod], ...] = (FitNet, AT, SP, CC, VID, RKD, PKT, AB, FT, FSP, NST, CRD, KDSVD)
_LATER: tuple[type[DistillationMethod], ...] = (OFD, ReviewKD, DKD, MLLD)

METHODS: Mapping[str, type[DistillationMethod]] = {method.name: method for method in (*_OURS, *_FEATURES, *_LATER)}
"""Every method by its name."""

Asked = str | DistillationMethod | type[DistillationMethod]
"""One method: a word, ``package.module:Name``, an object or a class."""
Methods = str | Asked | Sequence[Asked] | Mapping[Any, Mapping[str, Any] | None]
"""Several: ``"red+kd"``, a list, or a mapping of methods to their options."""


def as_mapping(methods: Methods) -> dict[Any, dict[str, Any]]:
    """Every way to ask for methods as one: a mapping of each method to its options.

    >>> as_mapping("red+kd"), as_mapping({"kd": None}), as_mapping("none")
    ({'red': {}, 'kd': {}}, {'kd': {}}, {})
    """
    if isinstance(methods, Mapping):
        for method, options in methods.items():
            if not isinstance(options or {}, Mapping):
                raise ConfigError(
                    f"distillation.methods.{method}: expected a mapping of options, got {shorten(options)}"
                )
        return {method: dict(options or {}) for method, options in methods.items()}
    if isinstance(methods, str):
        return {word.strip(): {} for word in methods.split("+") if word.strip() not in ("", "none")}
    return {method: {} for method in ([methods] if isinstance(methods, DistillationMethod | type) else methods)}


def create(method: Asked, options: Mapping[str, Any]) -> tuple[DistillationMethod, Share]:
    """A method with its options, and its share.

    Args:
        method: a word of :data:`METHODS`, ``package.module:Name``, one's own class, or an object, which has its
            options already.
        options: of the constructor, and of the share: ``weight``, ``warmup``, ``teacher``.

    Raises:
        ConfigError: an unknown word or option (with the nearest known one), or something that is no method.
    """
    kind = find(method, METHODS, "distillation method", ConfigError) if isinstance(method, str) else method
    own = {option: value for option, value in options.items() if option not in SHARE_OPTIONS}
    made = _instantiate(kind, own)
    share = {"weight": made.weight, "warmup": 0.0, "teacher": MAIN, **options}
    where = f"distillation.methods.{made.name}"
    weight, warmup = (convert(NotNegative, share[name], f"{where}.{name}") for name in ("weight", "warmup"))
    return made, Share(weight, warmup, convert(str, share["teacher"], f"{where}.teacher"))


def _instantiate(kind: Any, options: dict[str, Any]) -> DistillationMethod:
    if isinstance(kind, DistillationMethod):
        _check_options(kind.name, options, SHARE_OPTIONS)
        return kind
    if not (isinstance(kind, type) and issubclass(kind, DistillationMethod)):
        raise ConfigError(
            f"{getattr(kind, '__name__', repr(kind))} is no distillation method; "
            "derive it from redistill.distillation.DistillationMethod"
        )
    _check_options(kind.name, options, [*SHARE_OPTIONS, *inspect.signature(kind).parameters])
    try:
        return kind(**_typed(kind, options))
    except RedistillError:
        raise
    except Exception as error:  # whatever one's own method makes of what it is given
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"distillation: {kind.name} cannot be made with these options ({said})") from error


def _typed(kind: type[DistillationMethod], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the constructor annotates them, where those are plain values."""
    hints = typing.get_type_hints(kind.__init__, include_extras=True)
    where = f"distillation.methods.{kind.name}"
    return {
        name: convert(hints[name], value, f"{where}.{name}") if _is_plain(hints.get(name)) else value
        for name, value in options.items()
    }


def _is_plain(hint: Any) -> bool:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Annotated, Literal) else ()
    return hint in (bool, int, float, str) or (bool(parts) and (_is_plain(parts[0]) or isinstance(parts[0], str)))


def _check_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise ConfigError(f"distillation: {name} has no option {option!r}{suggest(option, known)}")
