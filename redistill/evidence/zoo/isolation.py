"""Isolation: a function called in a process of its own, within limits of time and memory."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

PATIENCE = 6
"""Wall time is allowed so many times the processor's time: other work may share the processor."""


@dataclass(frozen=True)
class Limits:
    """Seconds of one processor, and bytes of address space."""

    seconds: int
    bytes: int


@dataclass(frozen=True)
class Ended:
    """How a process ended: with a result, or why it has none (``out of time`` or a signal's name)."""

    result: Any = None
    death: str = ""


def prepare(packages: Sequence[str]) -> None:
    """Import ``packages`` once, in the process that all later ones are forked from."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, *packages])


def call(function: Callable[[Any], Any], argument: Any, limits: Limits) -> Ended:
    """``function(argument)``, computed elsewhere; nothing that happens there can harm this process."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, argument, limits), daemon=True)
    process.start()
    sender.close()
    try:
        ended = Ended(receiver.recv()) if receiver.poll(PATIENCE * limits.seconds) else Ended(death="out of time")
    except EOFError:
        process.join()
        ended = Ended(death=_cause(process.exitcode))
    finally:
        process.kill()
        process.join()
    return ended


def _run(sender: Connection, function: Callable[[Any], Any], argument: Any, limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (limits.bytes, limits.bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    sender.send(function(argument))


def _cause(exit_code: int | None) -> str:
    if exit_code == -signal.SIGXCPU:
        return "out of time"
    return signal.Signals(-exit_code).name if exit_code and exit_code < 0 else f"exit code {exit_code}"
