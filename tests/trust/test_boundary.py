"""Whatever a command is given ends in one line and an exit code; so do Ctrl-C and termination, wherever they come."""

import os
import signal
import subprocess
import sys
import time

import pytest

from redistill.cli import run
from redistill.errors import RedistillError

HERE = {**os.environ, "OMP_NUM_THREADS": "1"}


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RedistillError("a\n  b"), 2, "error: a b"),
        (OSError(28, "No space left on device"), 2, "make room"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "choose a smaller network, image or batch"),
        (RecursionError("deep"), 2, "RecursionError: deep (at test_boundary.py:"),
        (ValueError("x" * 10_000), 2, "..."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_end_is_one_line(error, code, words, capsys):
    assert run(raising(error)) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert len(said) < 1300


def test_a_fault_can_be_shown_whole(monkeypatch):
    monkeypatch.setenv("REDISTILL_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["redistill.transform", "redistill.trainers.classifier"])
@pytest.mark.parametrize("seconds", [0.6, 1.5, 4.0])
def test_a_signal_ends_a_command_in_one_line(module, number, seconds, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a test run in the background ignores Ctrl-C
    )
    time.sleep(seconds)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said
    assert process.returncode in (0, 2, 130, 143, -number)
