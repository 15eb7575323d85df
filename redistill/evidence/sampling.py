"""Sampling: teacher against student, by the same noise and in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill import measure, profile, transform
from redistill.diffusion import NoiseSchedule, sample
from redistill.evidence.networks import build
from redistill.internal.tables import Table
from redistill.tracing.capture import capture

UNET = "redistill:ddpm_unet?in_channels=1&width=32&blocks=1"
"""The UNet of the Fashion-MNIST experiments, at 32x32."""
IMAGES, BATCH, STEPS = 64, 8, 50


def run(spec: str = UNET, factors: tuple[int, ...] = (2, 2, 2, 1)) -> Table:
    """CPU seconds for 64 images by DDIM-50, in batches of 8 that teacher and student draw in turn; peaks of one image.

    Weights are random, which changes neither figure.
    """
    model, inputs = build(spec)
    student = transform(model, inputs, factors=factors, taps="none").eval()
    networks = {"teacher": capture(model, inputs).graph_module.eval(), "student": student}
    seconds = dict.fromkeys(networks, 0.0)
    for number in tqdm(range(IMAGES // BATCH), unit="batch", leave=False):
        noise = torch.randn(BATCH, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(number))
        for name, network in networks.items():
            seconds[name] += cpu_seconds(partial(sample, network, NoiseSchedule(), noise, steps=STEPS))
    table = Table(("network", f"{IMAGES} images, CPU s", "deploy bytes", "graph bytes", "measured bytes"))
    rows = {name: (seconds[name], *peaks(network, inputs)) for name, network in networks.items()}
    for name, row in rows.items():
        table.add(name, f"{row[0]:.1f}", *(f"{value:,}" for value in row[1:]))
    table.add("ratio", *(f"{a / b:.2f}x" for a, b in zip(rows["teacher"], rows["student"], strict=True)))
    table.notes.append(f"{spec}, student {','.join(map(str, factors))}; {torch.get_num_threads()} thread(s).")
    return table


def peaks(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, int, int]:
    """Peak bytes under ``deploy`` and ``graph``, and as measured."""
    predicted = [profile(network, inputs, convention).peak_bytes for convention in ("deploy", "graph")]
    return predicted[0], predicted[1], measure(network, inputs)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads, which others on the machine disturb less than the clock on the wall."""
    started = time.process_time()
    work()
    return time.process_time() - started
