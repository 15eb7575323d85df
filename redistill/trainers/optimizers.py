"""Optimizers from their configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from redistill.config.recipes import OptimizerConfig

FUSED = ("cpu", "cuda")
"""Where one kernel takes AdamW's whole step; a small network on a CPU spends an eighth of its time in it otherwise.

Fused SGD fails where some parameters first get a gradient later than others, as in two-stage methods (torch 2.14).
"""


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, in two groups where norms and biases do not decay."""
    groups = parameter_groups(module, config)
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    fused = all(parameter.device.type in FUSED for parameter in module.parameters())
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.betas[0], config.betas[1]), fused=fused)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters with their weight decay; vectors and scalars are norms and biases."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.decay_norms:
        return [{"params": trainable, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value
