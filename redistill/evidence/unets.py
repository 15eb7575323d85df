"""UNet denoisers: what plans reach, in memory and multiply-accumulates, and measured bytes against predicted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from redistill import Student, measure, profile, transform
from redistill.evidence.exactness import difference
from redistill.evidence.networks import build
from redistill.internal.tables import Table

GOALS = ("2,2,2,1", "1.13MiB", "2x", "4x", "8x")
"""The paper's factors, the budget that they need, and reductions."""
DIFFUSERS = "diffusers:UNet2DModel?sample_size={side}&layers_per_block={blocks}&norm_num_groups={groups}"
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ours, CIFAR-10": ("redistill:ddpm_unet", GOALS),
    "diffusers, ddpm-cifar10": (
        f"{DIFFUSERS.format(side=32, blocks=2, groups=32)}&block_out_channels=[128,256,256,256]"
        "&down_block_types=[DownBlock2D,AttnDownBlock2D,DownBlock2D,DownBlock2D]"
        "&up_block_types=[UpBlock2D,UpBlock2D,AttnUpBlock2D,UpBlock2D]"
        "&attention_head_dim=256&downsample_padding=0&flip_sin_to_cos=False&freq_shift=1&norm_eps=1e-6",
        GOALS,
    ),
    "ours, with classes": ("redistill:ddpm_unet?width=32&num_classes=10", GOALS[2:]),
    "diffusers, residual up and down": (
        f"{DIFFUSERS.format(side=32, blocks=1, groups=8)}&block_out_channels=[32,64]"
        "&down_block_types=[ResnetDownsampleBlock2D,AttnDownBlock2D]&up_block_types=[AttnUpBlock2D,ResnetUpsampleBlock2D]",
        GOALS[2:],
    ),
    "diffusers, text-conditional": (
        f"{DIFFUSERS.format(side=32, blocks=1, groups=8).replace('2DModel', '2DConditionModel')}"
        "&block_out_channels=[32,64]&cross_attention_dim=16&attention_head_dim=8"
        "&down_block_types=[CrossAttnDownBlock2D,DownBlock2D]&up_block_types=[UpBlock2D,CrossAttnUpBlock2D]",
        GOALS[2:],
    ),
}


def run() -> Table:
    """Each network at each goal, without taps; the last columns are measured minus predicted bytes under ``graph``."""
    table = Table(("network", "goal", "factors", "deploy MiB", "ratio", "GMAC", "fewer", "shape kept", "student graph"))
    for name, (spec, goals) in tqdm(NETWORKS.items(), unit="network", leave=False):
        model, inputs = build(spec)
        with torch.no_grad():
            expected = model(*inputs).shape
        for goal in goals:
            student = student_of(model, inputs, goal)
            with torch.no_grad():
                kept = student(*inputs).shape == expected
            table.add(name, goal, *figures(student), "yes" if kept else "NO", exactness(student, inputs))
    table.notes.append("student graph: measured minus predicted bytes of the student under `graph`.")
    return table


def student_of(model: nn.Module, inputs: tuple[Tensor, ...], goal: str) -> Student:
    """The student for a budget, or by factors."""
    factors = [int(part) for part in goal.split(",")] if "," in goal else None
    return transform(model, inputs, budget="4x" if factors else goal, factors=factors, taps="none").eval()


def figures(student: Student) -> tuple[str, ...]:
    """Factors, peaks and their ratio, multiply-accumulates and how many times fewer."""
    before, after = student.teacher_profile, student.profile
    return (
        ",".join(map(str, student.plan.factors)),
        f"{before.peak_bytes / 2**20:.3f} -> {after.peak_bytes / 2**20:.3f}",
        f"{before.peak_bytes / after.peak_bytes:.2f}x",
        f"{before.macs / 1e9:.3f} -> {after.macs / 1e9:.3f}",
        f"{before.macs / after.macs:.2f}x",
    )


def exactness(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Measured minus predicted bytes under ``graph``."""
    return difference(profile(module, inputs, "graph").peak_bytes, measure(module, inputs))
