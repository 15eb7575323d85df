"""A model spec as text, such as ``torchvision:mobilenet_v2?num_classes=10&width_mult=0.35``, and as a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from redistill.errors import ModelError

EXAMPLE = (
    "torchvision:resnet50, timm:NAME, diffusers:CLASS, transformers:CLASS, ultralytics:NAME.yaml, redistill:NAME or "
    "package.module:function"
)

PROVIDERS = ("torchvision", "timm", "diffusers", "transformers", "ultralytics", "redistill")

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


class _LiteralLoader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as text; this one reads it as the number that it is."""


_LiteralLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_spec(spec: str) -> ModelSpec:
    """Take ``provider:name?key=value&key=value`` apart; values are YAML literals (numbers, true, null, lists, text).

    Raises:
        ModelError: no provider or name, a keyword without a value or given twice, a value that is no literal, or a
            keyword that asks for weights (those are an argument of their own, so that nothing is fetched unasked).
    """
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
    try:
        value = yaml.load(text, Loader=_LiteralLoader)
    except yaml.YAMLError:
        raise ModelError(
            f"{spec}: cannot read the value of {item!r}; write a number, true, null, [a, list] or text"
        ) from None
    if keyword in _WEIGHT_KEYWORDS and value:  # false and null ask for none, which some builders must be told
        raise ModelError(
            f"{spec}: {keyword!r} is no keyword of a spec; give weights='pretrained' or a file's path instead"
        )
    return keyword, value
