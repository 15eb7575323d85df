"""Errors of evaluations."""

from __future__ import annotations

from redistill.errors import RedistillError


class EvaluationError(RedistillError):
    """Images, an extractor or a count that would give no score, or a misleading one."""
