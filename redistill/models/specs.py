"""A model spec as text, such as ``torchvision:mobilenet_v2?num_classes=10&width_mult=0.35``, and as a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redistill.errors import ModelError, TrustError
from redistill.internal.documents import parse_yaml

EXAMPLE = (
    "torchvision:resnet50, timm:NAME, diffusers:CLASS, transformers:CLASS, ultralytics:NAME.yaml, redistill:NAME or "
    "package.module:function"
)

LONGEST = 4096
"""Characters of a spec."""

PROVIDERS = ("torchvision", "timm", "diffusers", "transformers", "ultralytics", "redistill")

TRUSTED = ("torchvision", "timm", "diffusers", "redistill")
"""Those that build what a stranger names and run nothing of his; the others read files, or fetch code, by keywords."""

_ABOVE_ZERO = frozenset({"width_mult", "width", "in_channels", "in_chans"})
"""Keywords whose builders take nothing, or less, for a little."""
_WEIGHT_KEYWORDS = {
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_backbone",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
}


@dataclass(frozen=True)
class ModelSpec:
    """A spec taken apart: who provides the model, its name there, and the keyword arguments of its builder."""

    text: str
    provider: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The spec without its keywords, ``provider:name``."""
        return f"{self.provider}:{self.name}"

    @property
    def imported(self) -> bool:
        """Whether the provider is a module to import, of whose models nothing is known beforehand."""
        return self.provider not in PROVIDERS


def parse_spec(spec: str) -> ModelSpec:
    """Take ``provider:name?key=value&key=value`` apart; values are YAML literals (numbers, true, null, lists, text).

    Raises:
        ModelError: no provider or name, a keyword without a value or given twice, a value that is no literal, or a
            keyword that asks for weights (those are an argument of their own, so that nothing is fetched unasked).

    Example:
        >>> parse_spec("torchvision:mobilenet_v2?num_classes=10").arguments
        {'num_classes': 10}
    """
    if len(spec) > LONGEST:
        raise ModelError(f"the model spec {spec[:40]!r}... has {len(spec):,} characters; {LONGEST:,} is the most")
    target, _, query = spec.strip().partition("?")
    provider, colon, name = target.partition(":")
    if not colon or not provider or not name:
        raise ModelError(f"cannot read model spec {spec!r}; write {EXAMPLE}")
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        keyword, value = _parse_keyword(spec, item)
        if keyword in arguments:
            raise ModelError(f"{spec}: keyword {keyword!r} is given twice; keep one")
        arguments[keyword] = value
    return ModelSpec(spec, provider, name, arguments)


def _parse_keyword(spec: str, item: str) -> tuple[str, Any]:
    keyword, equals, text = item.partition("=")
    if not keyword.isidentifier() or not equals or not text:
        raise ModelError(f"{spec}: cannot read {item!r}; write keyword=value (null for none)")
    where = f"{spec}: cannot read the value of {item!r}; write a number, true, null, [a, list] or text"
    value = parse_yaml(text, where, ModelError)
    if keyword in _WEIGHT_KEYWORDS and value:  # false and null ask for none, which some builders must be told
        raise ModelError(
            f"{spec}: {keyword!r} is no keyword of a spec; give weights='pretrained' or a file's path instead"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{spec}: {item!r} is no finite number")
    if keyword in _ABOVE_ZERO and isinstance(value, (int, float)) and value <= 0:
        raise ModelError(f"{spec}: {item!r} must be above 0")
    return keyword, value


def require_trust(spec: str, place: object, trust: bool) -> str:
    """The spec; refused where it comes out of a file, its model might run any code, and nobody has said that it may.

    Args:
        spec: what a student's folder, a configuration or a run says its model is.
        place: where it says so.
        trust: whether the user trusts that place.

    Raises:
        TrustError: it names ``package.module:function``, or a provider that can be made to run code.
        ModelError: it is no spec.
    """
    parsed = parse_spec(spec)
    if parsed.provider not in TRUSTED and not trust:
        raise TrustError(
            f"{place} names the model {parsed.target}, and {parsed.provider} can run any code; "
            "if you trust that place, say so: --trust, or trust=True"
        )
    return spec
