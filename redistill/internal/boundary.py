"""The one boundary at which whatever goes wrong in a command becomes one line and an exit code.

It imports next to nothing, so that it stands before anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from redistill.errors import RedistillError

SHOW = "REDISTILL_TRACEBACK"
"""The environment variable that asks for the whole trace of a fault."""
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says of it, on a CPU and on a GPU."""
LONGEST = 1200
"""Characters of the line that a command ends in."""


def run(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command: the one boundary at which everything that goes wrong becomes one line and an exit code.

    What a user can mend ends in 2, a budget out of reach in 3, Ctrl-C and termination in 130 and 143. A fault of this
    library ends in 2 as well and says where it is; with ``REDISTILL_TRACEBACK=1`` in the environment it is shown whole.
    """
    try:
        with terminable():
            return main(arguments)
    except RedistillError as error:
        return _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Terminated:
        sys.stderr.write("terminated\n")
        return 143
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get(SHOW):
            raise
        return _end(_describe(error), RedistillError.exit_code)


class Terminated(BaseException):
    """The process was asked to end."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind what is under way, as Ctrl-C does, so that nothing is left half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(error: Exception) -> str:
    """What went wrong outside of what was foreseen, and what can be done."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, OSError):
        return f"{said}; make room, or choose a place that can be written"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(map(str(error).count, _OUT_OF_MEMORY))
    ):
        return "out of memory; choose a smaller network, image or batch"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[1:] if "redistill" in frame.filename] or frames
    return f"{said} (at {Path(own[-1].filename).name}:{own[-1].lineno}); {SHOW}=1 shows more"


def _end(message: str, code: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + '...'}\n")
    return code
