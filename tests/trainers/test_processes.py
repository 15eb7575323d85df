"""Two processes compute what one computes with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_task import loop, weights

from redistill.config.settings import RunConfig
from redistill.trainers.record import Record

SCRIPT = """
import sys
from pathlib import Path
from small_task import *
from redistill.trainers.acceleration import leave_processes
made = loop(Path(sys.argv[1]), dropout=0.0, accumulation=2, run=RunConfig(log_every=1))
made.run()
assert made.accelerator.num_processes == 2
if made.accelerator.is_main_process:
    torch.save(weights(made), Path(sys.argv[1]) / "weights.pt")
leave_processes()
"""


def losses(folder, kind="train"):
    return [entry["loss"] for entry in Record(folder).entries() if entry["kind"] == kind]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script, tests = folder / "two.py", Path(__file__).parent
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(tests), str(tests.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    ended = subprocess.run([*command, str(folder / "two")], env=environment, capture_output=True, timeout=180)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    made = loop(folder / "one", dropout=0.0, accumulation=2, run=RunConfig(log_every=1))
    made.run()
    return folder, weights(made)


def test_losses_are_equal_up_to_rounding(pair):
    folder, _ = pair
    for kind in ("train", "validation"):
        assert losses(folder / "two", kind) == pytest.approx(losses(folder / "one", kind), rel=1e-4)


def test_weights_and_statistics_are_equal_up_to_rounding(pair):
    folder, one = pair
    two = torch.load(folder / "two" / "weights.pt", weights_only=True)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_a_launcher_that_starts_one_process_for_several_is_noticed(monkeypatch, caplog):
    from redistill.trainers.acceleration import warn_of_missing_processes

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    warn_of_missing_processes("classifier")
    assert not caplog.text
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    warn_of_missing_processes("classifier")
    assert "torchrun --nproc_per_node" in caplog.text
