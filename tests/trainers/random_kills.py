"""Kill a run at random moments, resume it each time, and compare with a run that nobody disturbed.

    python tests/trainers/random_kills.py 20

Prints how far the run was at each kill, and whether the final weights and the log are equal to the bit.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
RUN = """
import sys
from small_task import *
often = RunConfig(log_every=5, checkpoint_every=20, keep=2, validate_every=10)
made = loop(Path(sys.argv[1]), epochs=int(sys.argv[2]), run=often)
print("started", flush=True)
made.run(resume=True)
torch.save(weights(made), Path(sys.argv[1]) / "weights.pt")
"""


def start(folder, epochs):
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    script = f"from pathlib import Path\n{RUN}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(epochs)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()
    return process


def finish(folder, epochs):
    assert start(folder, epochs).wait() == 0
    from redistill.trainers.record import Record

    entries = [(e["step"], e["loss"]) for e in Record(folder).entries() if e["kind"] == "train"]
    return torch.load(folder / "weights.pt", weights_only=True), entries


def kill_and_compare(kills, folder, epochs=150, seed=0):
    """Whether weights and losses are equal, after so many kills."""
    moments = random.Random(seed)
    for number in range(kills):
        process = start(folder / "killed", epochs)
        time.sleep(moments.uniform(0.0, 0.7))
        process.kill()
        process.wait()
        saved = sorted(path.name for path in (folder / "killed").glob("checkpoints/*"))
        print(f"kill {number + 1}: {', '.join(saved) or 'nothing saved yet'}", flush=True)
    weights, losses = finish(folder / "killed", epochs)
    straight, expected = finish(folder / "straight", epochs)
    return all(torch.equal(weights[name], value) for name, value in straight.items()), losses == expected


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent.parent))
    with tempfile.TemporaryDirectory() as place:
        equal = kill_and_compare(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(place))
    print(f"weights equal to the bit: {equal[0]}; losses equal: {equal[1]}")
    sys.exit(0 if all(equal) else 1)
