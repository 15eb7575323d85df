"""A distillation step of ours beside the paper's own code: MobileNetV2's pair at 128 pixels, RED and KD, CPU time.

    python tests/trainers/reference_cost.py CLONE 8     # a clone of the paper's repository, and the batch

Both run in processes of their own, in turn, with one thread. Prints the least and the median of the steps of each, in
milliseconds, and their ratio.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

TURNS, STEPS, SIZE = 3, 8, 128
TEACHER, STUDENT = "mobilenetv2-1-1222121", "mobilenetv2-4-1221111"


def theirs(clone, batch):
    """One step as the paper's code takes it."""
    sys.path[:0] = [str(clone / "base"), str(clone)]
    from backbones import Network
    from reed import ReED

    student, teacher = (Network(name, image_size=SIZE, num_classes=10) for name in (STUDENT, TEACHER))
    taps = str(clone / "base/configs/mobilenetv2-red+kd.yaml")
    model = ReED(student, [teacher], taps, dummy_input=torch.randn(1, 3, SIZE, SIZE)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.randint(0, 10, (batch,))

    def step():
        logits, loss = model(images)
        loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(batch):
    """One step as the trainer takes it on a CPU: channels last, freed memory kept."""
    from step_cost import prepare

    from redistill.trainers.acceleration import keep_freed_memory

    keep_freed_memory()
    spec = "redistill:mobilenet_v2_strided?num_classes=10"
    task, pictures, step_on, _ = prepare(
        spec, SIZE, batch, "red+kd", "student.factors=[4,4,4,2,1]", "student.budget=null"
    )
    task.to(memory_format=torch.channels_last)
    pictures["inputs"] = pictures["inputs"].contiguous(memory_format=torch.channels_last)
    return lambda: step_on(sum(task(pictures).values()))


def time_steps(step):
    """Milliseconds of some steps, after two to warm up."""
    found = []
    for _ in range(STEPS + 2):
        start = time.process_time()
        step()
        found.append(1e3 * (time.process_time() - start))
    return found[2:]


def compare(clone, batch):
    """Print what both need, in turn."""
    found = {"theirs": [], "ours": []}
    for _ in range(TURNS):
        for name, times in found.items():
            command = [sys.executable, "-W", "ignore", __file__, str(clone), str(batch), name]
            last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            times.extend(map(float, last.split()))
    for name, times in found.items():
        print(f"{name}: least {min(times):.0f} ms, median {statistics.median(times):.0f} ms, batch {batch}")
    least, median = (pick(found["theirs"]) / pick(found["ours"]) for pick in (min, statistics.median))
    print(f"ours is {least:.2f} times as fast (least), {median:.2f} (median)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    clone, batch = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    if sys.argv[3:]:
        print(*time_steps(theirs(clone, batch) if sys.argv[3] == "theirs" else ours(batch)))
    else:
        compare(clone, batch)
