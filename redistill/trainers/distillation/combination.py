"""Several methods at once: the registry, and the weighted sum of their losses."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redistill.errors import ConfigError
from redistill.trainers.distillation.ab import AB
from redistill.trainers.distillation.at import AT
from redistill.trainers.distillation.cc import CC
from redistill.trainers.distillation.crd import CRD
from redistill.trainers.distillation.dkd import DKD
from redistill.trainers.distillation.fitnet import FitNet
from redistill.trainers.distillation.fsp import FSP
from redistill.trainers.distillation.ft import FT
from redistill.trainers.distillation.kd import KD
from redistill.trainers.distillation.kdsvd import KDSVD
from redistill.trainers.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.trainers.distillation.mlld import MLLD
from redistill.trainers.distillation.mse import MSE
from redistill.trainers.distillation.nst import NST
from redistill.trainers.distillation.ofd import OFD
from redistill.trainers.distillation.pkt import PKT
from redistill.trainers.distillation.red import RED
from redistill.trainers.distillation.reentry import Reentry
from redistill.trainers.distillation.reviewkd import ReviewKD
from redistill.trainers.distillation.rkd import RKD
from redistill.trainers.distillation.sp import SP
from redistill.trainers.distillation.stage import Stage
from redistill.trainers.distillation.vid import VID

_OURS: tuple[type[DistillationMethod], ...] = (RED, Stage, KD, MSE, Reentry)
_FEATURES: tuple[type[DistillationMethod], ...] = (FitNet, AT, SP, CC, VID, RKD, PKT, AB, FT, FSP, NST, CRD, KDSVD)
_LATER: tuple[type[DistillationMethod], ...] = (OFD, ReviewKD, DKD, MLLD)

METHODS: Mapping[str, type[DistillationMethod]] = {method.name: method for method in (*_OURS, *_FEATURES, *_LATER)}
"""Every method by its name."""

COMMON_OPTIONS = ("weight", "warmup")


@dataclass(frozen=True)
class Share:
    """A method's part in the sum: its weight, and the epochs over which the weight rises from 0."""

    weight: float
    warmup: float = 0.0

    def at(self, epoch: float) -> float:
        """The weight after so many epochs, which may be a fraction."""
        return self.weight if epoch >= self.warmup else self.weight * epoch / self.warmup


class Distillation(nn.Module):
    """Methods and their shares. It owns their helper parameters and nothing of the networks.

    Losses are computed in float32 whatever the networks' precision: Gram matrices and logarithms need it.
    """

    def __init__(self, methods: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        super().__init__()
        self.shares: dict[str, Share] = {}
        self.methods = nn.ModuleDict()
        for name, options in (methods or {}).items():
            self.methods[name], self.shares[name] = create(name, options)

    @property
    def needs(self) -> frozenset[Need]:
        """What all methods together read."""
        return frozenset().union(*(method.needs for _, method in self.parts()))

    @property
    def two_stage(self) -> bool:
        """Whether some method has a first stage of its own."""
        return any(method.two_stage for _, method in self.parts())

    def parts(self) -> list[tuple[str, DistillationMethod]]:
        """The methods by name."""
        return [(name, module) for name, module in self.methods.items() if isinstance(module, DistillationMethod)]

    def build(self, student: Outputs, teacher: Outputs, training_set: TrainingSet) -> None:
        """Create every method's helpers for the shapes of these example outputs."""
        for _, method in self.parts():
            method.build(student, teacher, training_set)

    def forward(self, student: Outputs, teacher: Outputs, targets: Targets, epoch: float = 0.0) -> Losses:
        """The weighted losses of all methods, by "method/place"."""
        student, teacher = in_float32(student), in_float32(teacher)
        found: Losses = {}
        with torch.autocast(_device_type(student), enabled=False):
            for name, method in self.parts():
                weight = self.shares[name].at(epoch)
                for place, loss in method.losses(student, teacher, targets).items():
                    found[f"{name}/{place}"] = weight * loss
        return found

    def initialise(self, student: Outputs, teacher: Outputs, targets: Targets) -> Losses:
        """The weighted losses of the first stage of two-stage methods."""
        student, teacher = in_float32(student), in_float32(teacher)
        found: Losses = {}
        with torch.autocast(_device_type(student), enabled=False):
            for name, method in self.parts():
                for place, loss in method.initialise(student, teacher, targets).items():
                    found[f"{name}/{place}"] = self.shares[name].weight * loss
        return found

    def extra_parameters(self) -> dict[str, int]:
        """Trainable helper parameters of each method; none of them is deployed."""
        return {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in self.parts()}


def create(name: str, options: Mapping[str, Any]) -> tuple[DistillationMethod, Share]:
    """A method by name, with its options and share; errors name the nearest known word."""
    if name not in METHODS:
        raise ConfigError(f"distillation: there is no method {name!r}{_hint(name, METHODS)}")
    kind = METHODS[name]
    known = [*COMMON_OPTIONS, *inspect.signature(kind).parameters]
    for option in options:
        if option not in known:
            raise ConfigError(f"distillation: {name} has no option {option!r}{_hint(option, known)}")
    own = {option: value for option, value in options.items() if option not in COMMON_OPTIONS}
    share = Share(float(options.get("weight", kind.weight)), float(options.get("warmup", 0.0)))
    return kind(**own), share


def in_float32(outputs: Outputs) -> Outputs:
    """The same outputs with floating tensors in float32."""

    def each(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in maps.items()}

    return Outputs(
        logits=None if outputs.logits is None else outputs.logits.float(),
        taps=each(outputs.taps),
        stages=each(outputs.stages),
        preactivations=each(outputs.preactivations),
        reentry=None if outputs.reentry is None else outputs.reentry.float(),
    )


def _device_type(outputs: Outputs) -> str:
    for value in (outputs.logits, outputs.reentry, *outputs.taps.values(), *outputs.stages.values()):
        if value is not None:
            return value.device.type
    return "cpu"


def _hint(word: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; choose from {', '.join(names)}"
