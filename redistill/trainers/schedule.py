"""The learning rate's factor as a function of the step, so that nothing has to be saved or restored."""

from __future__ import annotations

import math

from redistill.config.recipes import ScheduleConfig

LOWEST = 1e-4
START = 1 / 25


def factor(config: ScheduleConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """The factor for an optimizer step (from 0) of `total`; warm-up rises linearly to the schedule."""
    warmup = round(config.warmup * steps_per_epoch) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    after, length = step - warmup, max(1, total - warmup)
    if config.name == "step":
        return config.gamma ** sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
    if config.name == "cosine":
        return _cosine(1.0, config.floor, after / length)
    if config.name == "one_cycle":
        return _one_cycle(after, length, config.rise)
    return 1.0


def _one_cycle(step: int, total: int, rise: float) -> float:
    """From 1/25 up to 1 over the rise, then down to 1e-4/25, both along half a cosine (Smith and Topin 2017)."""
    peak = max(1.0, rise * total)
    if step <= peak:
        return _cosine(START, 1.0, step / peak)
    return _cosine(1.0, START * LOWEST, (step - peak) / max(1.0, total - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
