"""Errors of training runs."""

from __future__ import annotations

from redistill.errors import RedistillError


class DataError(RedistillError):
    """Data that is missing or does not fit; the message says where it was looked for and how to get it."""


class CheckpointError(RedistillError):
    """A checkpoint that cannot be written, or a run that cannot be continued."""


class DivergenceError(RedistillError):
    """A loss that is no longer finite; the message gives the step, the terms and the last good checkpoint."""

    exit_code = 4


class InterruptedRunError(RedistillError):
    """A run that was asked to stop and has saved itself."""

    exit_code = 130
