"""Latency: teachers beside their students at 4x, called in turn, with the spread of the ratios."""

from __future__ import annotations

import torch
from tqdm import tqdm

from redistill.evidence.networks import short
from redistill.internal.tables import Table
from redistill.studies.benchmark.backends import BACKENDS
from redistill.studies.benchmark.measuring import describe_machine, find_disturbances, time_backend
from redistill.studies.benchmark.pair import make_pair

NETWORKS = ("torchvision:resnet50", "torchvision:mobilenet_v2")
RUNTIMES = ("eager", "onnxruntime", "executorch")  # compiling takes minutes: redistill benchmark has it too
REPEATS, SECONDS = 30, 10.0


def run() -> Table:
    """Batch 1 at 224, on each runtime that is installed; milliseconds are medians."""
    table = Table(("network", "memory", "MACs", "runtime", "pairs", "teacher", "student", "faster", "quartiles"))
    runtimes = [name for name in RUNTIMES if BACKENDS[name].missing is None]
    timings = []
    for spec in NETWORKS:
        pair = make_pair(spec, "4x", "random")
        facts = pair.student.comparison()
        for name in tqdm(runtimes, desc=short(spec), unit="runtime", leave=False):
            found = time_backend(name, (pair.teacher, pair.student), pair.inputs(), REPEATS, SECONDS)
            timings.append(found)
            low, high = found.quartiles
            table.add(
                short(spec), f"{facts.ratio:.2f}x less", f"{facts.teacher.macs / facts.student.macs:.2f}x less",
                BACKENDS[name].title, len(found.teacher.milliseconds), f"{found.teacher.median:.1f} ms",
                f"{found.student.median:.1f} ms", f"{found.ratio:.2f}x", f"{low:.2f} - {high:.2f}",
            )  # fmt: skip
    table.notes.append(f"Batch 1, threads: {torch.get_num_threads()}, {describe_machine('cpu')}.")
    table.notes += [f"{note[0].upper()}{note[1:]}." for note in find_disturbances(timings)]
    table.notes += [f"Not installed: {BACKENDS[name].title}." for name in RUNTIMES if name not in runtimes]
    return table
