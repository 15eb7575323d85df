"""Threads transform and serve side by side, and see nothing of each other."""

import gc
import linecache
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import nn
from torch.fx.graph_module import _loader

import redistill


def make_teacher():
    layers = [nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()


def test_eight_threads_transform_one_teacher_while_another_serves_it():
    teacher, images = make_teacher(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = teacher(images)
    alone = redistill.transform(teacher, images, "2x")
    stop, served = threading.Event(), []

    def serve():
        while not stop.is_set():
            with torch.no_grad():
                served.append(torch.equal(teacher(images), expected) and torch.zeros(3, 4).shape == (3, 4))

    server = threading.Thread(target=serve)
    server.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: redistill.transform(teacher, images, "2x"), range(16)))
    finally:
        stop.set()
        server.join()
    assert {(student.code, student.plan.factors) for student in found} == {(alone.code, alone.plan.factors)}
    assert served
    assert all(served)


def test_transforms_leave_nothing_behind():
    teacher, images = make_teacher(), torch.rand(2, 3, 32, 32)

    def count():
        gc.collect()
        return len(gc.get_objects()), len(_loader.eval_cache), len(linecache.cache)

    counts = [count()]
    for _ in range(4):  # the first fill caches; what leaks grows every time
        for _ in range(3):
            redistill.transform(teacher, images, "2x")
        counts.append(count())
    grown = [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in pairwise(counts)]
    assert min(objects for objects, _, _ in grown) < 100
    assert grown[-1][1:] == (0, 0)


def test_a_trace_sees_nothing_of_another_threads_work():
    start, done = threading.Barrier(2, timeout=60), []

    class Meets(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x):
            if not done:
                start.wait()  # the other thread works now, in the midst of the trace
                start.wait()
            return self.conv(x)

    def other():
        start.wait()
        done.append(nn.Linear(3, 3)(torch.ones(2, 3)).shape == (2, 3))
        start.wait()

    thread = threading.Thread(target=other)
    thread.start()
    found = redistill.profile(Meets().eval(), torch.zeros(1, 3, 16, 16))
    thread.join()
    assert done == [True]
    assert {step.module for step in found.timeline} <= {"", "conv"}
