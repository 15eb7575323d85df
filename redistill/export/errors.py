"""Errors of exports."""

from __future__ import annotations

from redistill.errors import RedistillError


class ExportError(RedistillError):
    """A network that a format cannot hold, or a file that does not compute what the network does."""


class MissingExtraError(ExportError):
    """An optional package that a format needs."""
