"""Fitting: how long it takes at full size, how much memory, and how much nearer to its teacher a student comes."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import redistill
from redistill.evidence.networks import build, short
from redistill.internal.tables import Table

NETWORKS = ("torchvision:mobilenet_v2", "torchvision:resnet18")
IMAGES, SIDE = 256, 224


def run() -> Table:
    """4x students without RED blocks; random weights under batch norms that have seen the images."""
    table = Table(("network", "fitted", "seconds", "output error before", "after"))
    images = smooth_images(IMAGES)
    for spec in tqdm(NETWORKS, unit="network", leave=False):
        teacher = build(spec)[0]
        settle(teacher, images[:64])
        student = redistill.transform(teacher, images[:1], "4x", taps="none")
        inherited = copy.deepcopy(student)
        started = time.perf_counter()
        report = redistill.fit(student, teacher, images)
        seconds = time.perf_counter() - started
        errors = (f"{100 * error(network, teacher, images[:64]):.2f} %" for network in (inherited, student))
        table.add(short(spec), f"{len(report.layers)} of {report.total} layers", f"{seconds:.0f}", *errors)
    table.notes.append(f"{IMAGES} images of {SIDE} px, {torch.get_num_threads()} threads.")
    table.notes.append("Error: mean square between the outputs, in units of the variance of the teacher's over images.")
    return table


def smooth_images(count: int) -> Tensor:
    """Random images with structure at several scales (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    layers = (torch.randn(count, 3, s, s, generator=generator) for s in (3, 9, 27))
    return torch.stack([F.interpolate(layer, (SIDE, SIDE), mode="bilinear") for layer in layers]).sum(0)


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Let batch norms see images, so that a network with random weights tells one from another."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()(images)
    network.eval()


@torch.no_grad()
def error(network: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    """Mean square between the outputs in units of the teacher's variance over images."""
    aim = teacher(images)
    return float((network.eval()(images) - aim).square().mean() / aim.var(0).mean())
