"""Errors of quantisation."""

from __future__ import annotations

from redistill.errors import RedistillError


class QuantizationError(RedistillError):
    """A network or calibration data that cannot be quantised; the message says what would help."""
