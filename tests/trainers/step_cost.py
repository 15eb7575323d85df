"""What distillation costs beside a teacher's forward pass and a plain student's step, in CPU time of one thread.

    python tests/trainers/step_cost.py torchvision:resnet50?num_classes=10 128 8 red+kd

The arguments are the teacher, the image size, the batch and the methods. Prints the least of several steps, their ratio
and images per second.
"""

import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.distillation import MAIN
from redistill.models import load_model
from redistill.trainers.acceleration import keep_freed_memory
from redistill.trainers.classifier import ClassifierExperiment
from redistill.trainers.students import obtain_student

REPEATS = 7


def least(*steps):
    """Milliseconds of the quickest of several runs of each step, called in turn, after one to warm up."""
    found = [[] for _ in steps]
    for _ in range(REPEATS + 1):
        for step, times in zip(steps, found, strict=True):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    return tuple(1e3 * min(times[1:]) for times in found)


def prepare(spec, size, batch, methods, *settings):
    """A distillation task on random images, the batch, and what steps on a loss."""
    taps = "student.taps=auto" if "red" in methods.split("+") else "student.taps=none"
    config = load(
        ClassifierConfig,
        "digits/smoke.yaml",
        [
            f"teacher.model={spec}",
            f"data.image_size={size}",
            f"distillation.methods={methods}",
            taps,
            "student.recalibrate=0",
            *settings,
        ],
    )
    experiment, teacher = ClassifierExperiment(config, Path("unused")), load_model(spec, "random")
    student = obtain_student(experiment, teacher)
    task = experiment.make_task(experiment.make_distiller(student, {MAIN: teacher})).train()
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))

    def step_on(loss):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return task, {"inputs": images, "labels": labels, "indices": torch.arange(batch)}, step_on, teacher


def measure(spec, size, batch, methods):
    """Milliseconds of a distillation step, and of the teacher's forward and the plain student's step."""
    task, pictures, step_on, teacher = prepare(spec, size, batch, methods)

    def distil():
        step_on(sum(task(pictures).values()))

    def apart():
        with torch.inference_mode():
            teacher(pictures["inputs"])
        step_on(F.cross_entropy(task.network(pictures["inputs"]), pictures["labels"]))

    return least(distil, apart)


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()
    spec, size, batch, methods = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    together, separate = measure(spec, size, batch, methods)
    print(f"distillation step {together:.0f} ms; teacher forward and student step apart {separate:.0f} ms")
    print(f"ratio {together / separate:.3f}; {1e3 * batch / together:.1f} images per second")
