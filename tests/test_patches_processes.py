"""A student with patches under DistributedDataParallel: two processes train it as they train the plain network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.test_patches_students import Classifier, difference


def noise(images: int, seed: int) -> Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


SCRIPT = """
import sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from redistill import transform
from tests.test_patches_processes import noise
from tests.test_patches_students import Classifier

distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
plain = Classifier()
student = transform(plain, noise(1, 0), "3x", levers="patches")
assert student.patches.regions
if rank == 0:
    torch.save((plain.state_dict(), None), f"{sys.argv[1]}/before.pt")
for network in (plain, student):
    together = DistributedDataParallel(network.train())
    optimiser = torch.optim.SGD(together.parameters(), lr=0.05)
    for step in range(3):
        images = noise(8, step)[rank::2]
        loss = together(images).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    together.eval()
    with torch.no_grad():
        yielded = together(noise(1, 9))
    torch.save((network.state_dict(), yielded), f"{sys.argv[1]}/{type(network).__name__}{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_train_it_as_the_plain_network(tmp_path: Path) -> None:
    script, root = tmp_path / "two.py", Path(__file__).parent.parent
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    ended = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    found = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    plain, before = found["Classifier0"], found["before"][0]
    for name in ("Classifier1", "Student0", "Student1"):
        weights, yielded = found[name]
        assert weights.keys() == plain[0].keys()
        for key, value in weights.items():
            if "running" not in key or name.endswith("0"):  # each process keeps statistics of its own last step
                torch.testing.assert_close(value, plain[0][key], rtol=1e-4, atol=1e-6)
        if name == "Student0":
            assert difference(yielded, plain[1]) <= 1e-5
    assert not torch.equal(plain[0]["head.weight"], before["head.weight"])
    restored = Classifier().eval()
    restored.load_state_dict(found["Student0"][0])
    assert difference(restored(noise(1, 9)), found["Student0"][1]) <= 1e-5
