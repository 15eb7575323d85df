"""The errors a user can meet: each names the thing, its place, its shape and the remedy."""

from __future__ import annotations


class RedistillError(Exception):
    """Base of every error that the library raises on purpose; the command lines turn it into exit code 2.

    Example:
        >>> import redistill, torch
        >>> try:
        ...     redistill.profile(torch.nn.ReLU(), torch.zeros(1), convention="deplo")
        ... except redistill.RedistillError as error:
        ...     print(error)
        there is no convention 'deplo'; did you mean 'deploy'?
    """

    exit_code = 2


class BudgetError(RedistillError):
    """A budget that cannot be read."""


class ModelError(RedistillError):
    """A model spec, its weights or its example input that cannot be used."""


class TrustError(RedistillError):
    """A file that would run code of its own; nobody has said that it may."""


class TraceError(RedistillError):
    """A module that cannot be captured as a graph; ``depends_on_data`` says that only the data decide what it does."""

    depends_on_data = False


class PlanError(RedistillError):
    """A pooling plan that is not legal for the network; ``node`` is where in its graph that showed, if anywhere."""

    node = ""


class PassError(RedistillError):
    """A graph pass that fails, cannot be found, or leaves a graph that does not hold."""


class InfeasibleBudgetError(PlanError):
    """A budget below what any plan reaches; the message says what stands in the way.

    Example:
        >>> import redistill, torch
        >>> try:
        ...     redistill.transform(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 16, 16), budget="100B")
        ... except redistill.InfeasibleBudgetError as error:
        ...     print(str(error)[:40])
        no student of Conv2d fits 100 B (deploy)
    """

    exit_code = 3


class TapError(RedistillError):
    """A distillation tap whose places do not exist or do not match."""


class FitError(RedistillError):
    """A student none of whose layers can be fitted to its teacher's."""


class StudentError(RedistillError):
    """A student folder that cannot be written or read."""


class ConfigError(RedistillError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


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


class ExportError(RedistillError):
    """A network that a format cannot hold, or a file that does not compute what the network does."""


class MissingExtraError(ExportError):
    """An optional package that a format needs."""


class EvaluationError(RedistillError):
    """Images, an extractor or a count that would give no score, or a misleading one."""


class QuantizationError(RedistillError):
    """A network or calibration data that cannot be quantised; the message says what would help."""
