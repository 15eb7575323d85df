"""Without the remarks that exporters and quantisers make on themselves."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings and no log lines below errors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_QUIET: dict[str, tuple[int, int]] = {}  # by logger: how many want it quiet, and its level before
_LOCK = threading.Lock()


@contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """No log lines of this logger; its level comes back when the last of all threads that want it quiet has left."""
    logger = logging.getLogger(name)
    with _LOCK:
        count, level = _QUIET.get(name, (0, logger.level))
        _QUIET[name] = (count + 1, level)
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _LOCK:
            count, level = _QUIET.pop(name)
            if count > 1:
                _QUIET[name] = (count - 1, level)
            else:
                logger.setLevel(level)


@contextmanager
def standard_error() -> Iterator[Callable[[], str]]:
    """Take in what native code writes to standard error; yields a function that reads it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
