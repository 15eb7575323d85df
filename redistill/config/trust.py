"""The words of a configuration that would import a module and run its code, asked about before anything is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from redistill.config.settings import DataConfig, DistillationConfig, StudentConfig, TeacherConfig
from redistill.errors import TrustError
from redistill.internal.plugins import is_path
from redistill.models.specs import require_trust


def check_trust(config: Any, place: object, trust: bool) -> None:
    """Refuse a configuration that names code of its own, unless the user says that it may.

    Args:
        config: a section, or a whole configuration.
        place: where it comes from, for the message.
        trust: whether the user trusts that place.

    Raises:
        TrustError: it names a model, a data set, a method, an objective or a convention that would be imported.
    """
    if trust:
        return
    for where, section in _sections(config, ""):
        if isinstance(section, (TeacherConfig, StudentConfig)) and section.model is not None:
            require_trust(section.model, f"{place} ({where}.model)", trust)
        if isinstance(section, StudentConfig):
            _refuse_path(section.objective, f"{place} ({where}.objective)")
            _refuse_path(section.convention, f"{place} ({where}.convention)")
        if isinstance(section, StudentConfig):
            _refuse_path(section.objective, f"{place} ({where}.objective)")
            _refuse_path(section.convention, f"{place} ({where}.convention)")
        if isinstance(section, DataConfig):
            _refuse_path(section.name, f"{place} ({where}.name)")
        if isinstance(section, DistillationConfig):
            for method in section.methods:
                _refuse_path(method.partition("@")[0], f"{place} ({where}.methods)")


def _refuse_path(word: str, place: str) -> None:
    if is_path(word):
        raise TrustError(
            f"{place} names {word}, which would be imported and can run any code; "
            "if you trust that place, say so: --trust, or trust=True"
        )


def _sections(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """A configuration, its sections and theirs, each with its path."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _sections(item, f"{where}.{name}".lstrip("."))
    elif is_dataclass(value):
        yield where or type(value).__name__, value
        for field in fields(value):
            yield from _sections(getattr(value, field.name), f"{where}.{field.name}".lstrip("."))
