"""What a setting may be, said beside it: ``epochs: Count = 30``; checked in one place, whoever makes the section."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from redistill.errors import ConfigError

MOST = 10**12
"""What no count of anything exceeds; ranges that end here are shown without an end."""
SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; open leaves that end itself out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def check(self, value: float, where: str) -> None:
        """Raise where a number lies outside.

        Raises:
            ConfigError: naming the place, the number and the range.
        """
        low = value > self.low if self.open_low else value >= self.low
        high = value < self.high if self.open_high else value <= self.high
        if not (low and high):
            raise ConfigError(f"{where}={shorten(value)}: must {self}")

    def __str__(self) -> str:
        if self.high >= MOST:
            return f"be above {self.low:g}" if self.open_low else f"be {self.low:g} or more"
        if self.open_low and self.open_high:
            return f"lie between {self.low:g} and {self.high:g}"
        low = f"be above {self.low:g}" if self.open_low else f"be {self.low:g} or more"
        return f"{low} and {f'below {self.high:g}' if self.open_high else f'{self.high:g} or less'}"


Count = Annotated[int, Range(0, MOST)]
Positive = Annotated[int, Range(1, MOST)]
Side = Annotated[int, Range(1, 16384)]
Workers = Annotated[int, Range(0, 256)]
AboveZero = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, open_high=True)]
Factor = Annotated[int, Range(1, 4096)]
Padding = Annotated[int, Range(0, 16384)]
TwoOrMore = Annotated[int, Range(2, MOST)]
AreaShare = Annotated[float, Range(0, 1, open_low=True)]
Inside = Annotated[float, Range(0, 1, open_low=True, open_high=True)]


class Section:
    """Base of the sections of a configuration: every field is checked, however the section is made.

    Attributes:
        place: where it stands in a configuration, for messages.
    """

    place: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = type_hints(typing.cast(Any, type(self)))
        for field in dataclasses.fields(typing.cast(Any, self)):
            check_ranges(hints[field.name], getattr(self, field.name), f"{self.place}.{field.name}".lstrip("."))


@functools.cache
def type_hints(kind: type) -> Mapping[str, Any]:
    """The annotations of a dataclass, ranges included."""
    return typing.get_type_hints(kind, include_extras=True)


def check_ranges(hint: Any, value: Any, where: str) -> None:
    """Raise where a number, or one in a list, is not finite or lies outside the range beside its type.

    Raises:
        ConfigError: naming the place, the number and the range.
    """
    if isinstance(value, tuple):
        inner = next((a for a in (hint, *typing.get_args(hint)) if typing.get_origin(a) is tuple), None)
        for index, item in enumerate(value if inner is not None else ()):
            check_ranges(typing.get_args(inner)[0], item, f"{where}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}={value}: must be a finite number")
        for limit in _ranges(hint):
            limit.check(value, where)


def _ranges(hint: Any) -> list[Range]:
    """Those beside a type, or beside a part of a union."""
    own = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range)]
    if typing.get_origin(hint) is Annotated:
        return own
    return [found for part in typing.get_args(hint) for found in _ranges(part)]


def require(condition: bool, message: str) -> None:
    """Refuse a setting that a range beside its type does not tell of.

    Raises:
        ConfigError: with the message, where the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)


def shorten(value: object) -> str:
    """A value as it is shown in a message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
