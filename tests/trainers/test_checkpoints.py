"""Runs that are stopped anywhere, and checkpoints that are damaged, end in the same weights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_task import equal, loop, weights

from redistill.config.settings import RunConfig
from redistill.errors import CheckpointError
from redistill.trainers.checkpoint import damage
from redistill.trainers.record import Record
from redistill.trainers.state import write_state

OFTEN = RunConfig(log_every=2, checkpoint_every=4, keep=3)

KILLED = """
import os, signal, sys
from pathlib import Path
from small_task import *
from redistill.config.settings import RunConfig
import redistill.trainers.checkpoint as checkpoint
calls, where, at = 0, sys.argv[2], int(sys.argv[3])
def die_in(owner, name):
    original = getattr(owner, name)
    def dying(*given, **named):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)
    setattr(owner, name, dying)
from redistill.trainers.loop import Loop
die_in(*{"step": (Loop, "_train_on"), "seal": (checkpoint, "seal"), "publish": (checkpoint, "publish")}[where])
loop(Path(sys.argv[1]), run=RunConfig(log_every=2, checkpoint_every=4, keep=3)).run()
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights and the log of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    made = loop(folder, run=OFTEN)
    made.run()
    return weights(made), losses(folder), folder


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in Record(folder).entries() if entry["kind"] == "train"]


def continued(folder):
    made = loop(folder, run=OFTEN)
    made.run(resume=True)
    return weights(made), losses(folder)


@pytest.mark.parametrize(("where", "at"), [("step", 11), ("seal", 3), ("publish", 2)])
def test_after_a_kill(tmp_path, straight, where, at):
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent.parent)])
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(at)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=120)
    assert ended.returncode == -9, ended.stderr.decode()
    reached, logged = continued(tmp_path)
    assert equal(reached, straight[0])
    assert logged == straight[1]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, straight, harm, caplog):
    folder = tmp_path / "run"
    shutil.copytree(straight[2], folder)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    file = newest / "state.safetensors"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:100])
    elif harm == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "remove":
        file.unlink()
    else:
        (newest / "manifest.json").unlink()
    assert damage(newest)
    reached, logged = continued(folder)
    assert f"{newest} is damaged" in caplog.text
    assert equal(reached, straight[0])
    assert logged == straight[1]


def test_resuming_a_finished_run_changes_nothing(tmp_path, straight):
    folder = tmp_path / "run"
    shutil.copytree(straight[2], folder)
    assert equal(continued(folder)[0], straight[0])


def test_checkpoints_are_limited_in_number(straight):
    names = [path.name for path in sorted((straight[2] / "checkpoints").iterdir())]
    assert names == ["step-000000012", "step-000000016", "step-000000018"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    made = loop(tmp_path, run=OFTEN)

    def full(folder, state):
        (folder / "state.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    saves = iter([write_state, write_state, full])
    monkeypatch.setattr("redistill.trainers.checkpoint.write_state", lambda *given: next(saves)(*given))
    with pytest.raises(CheckpointError, match=r"No space left.*step-000000006; make room"):
        made.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert damage(made.checkpoints.all()[-1]) is None
