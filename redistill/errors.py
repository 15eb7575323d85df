"""The errors a user can meet: each names the thing, its place, its shape and the remedy."""

from __future__ import annotations


class RedistillError(Exception):
    """Base of every error that the library raises on purpose; the command lines turn it into exit code 2."""

    exit_code = 2


class BudgetError(RedistillError):
    """A budget that cannot be read."""


class ModelError(RedistillError):
    """A model spec, its weights or its example input that cannot be used."""


class TraceError(RedistillError):
    """A module that cannot be captured as a graph."""


class PlanError(RedistillError):
    """A pooling plan that is not legal for the network."""


class InfeasibleBudgetError(PlanError):
    """A budget below what any plan reaches; the message says what stands in the way."""

    exit_code = 3


class TapError(RedistillError):
    """A distillation tap whose places do not exist or do not match."""


class StudentError(RedistillError):
    """A student folder that cannot be written or read."""


class ConfigError(RedistillError):
    """A configuration with an unknown key, a wrong type or a value out of range."""
