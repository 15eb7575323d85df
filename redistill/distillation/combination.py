"""Several methods at once: the registry, and the weighted sum of their losses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.methods.ab import AB
from redistill.distillation.methods.at import AT
from redistill.distillation.methods.cc import CC
from redistill.distillation.methods.crd import CRD
from redistill.distillation.methods.dkd import DKD
from redistill.distillation.methods.fitnet import FitNet
from redistill.distillation.methods.fsp import FSP
from redistill.distillation.methods.ft import FT
from redistill.distillation.methods.kd import KD
from redistill.distillation.methods.kdsvd import KDSVD
from redistill.distillation.methods.mlld import MLLD
from redistill.distillation.methods.mse import MSE
from redistill.distillation.methods.nst import NST
from redistill.distillation.methods.ofd import OFD
from redistill.distillation.methods.pkt import PKT
from redistill.distillation.methods.red import RED
from redistill.distillation.methods.reentry import Reentry
from redistill.distillation.methods.reviewkd import ReviewKD
from redistill.distillation.methods.rkd import RKD
from redistill.distillation.methods.sp import SP
from redistill.distillation.methods.stage import Stage
from redistill.distillation.methods.vid import VID
from redistill.errors import ConfigError
from redistill.internal.suggestions import suggest

_OURS: tuple[type[DistillationMethod], ...] = (RED, Stage, KD, MSE, Reentry)
_FEATURES: tuple[type[DistillationMethod], ...] = (FitNet, AT, SP, CC, VID, RKD, PKT, AB, FT, FSP, NST, CRD, KDSVD)
_LATER: tuple[type[DistillationMethod], ...] = (OFD, ReviewKD, DKD, MLLD)

METHODS: Mapping[str, type[DistillationMethod]] = {method.name: method for method in (*_OURS, *_FEATURES, *_LATER)}
"""Every method by its name."""

COMMON_OPTIONS = ("weight", "warmup")

MAIN = "teacher"
"""The name of the first teacher."""

Teachers = Outputs | Mapping[str, Outputs]
"""What one teacher shows, or several by name."""


@dataclass(frozen=True)
class Share:
    """A method's part in the sum: its weight, and the epochs over which the weight rises from 0."""

    weight: float
    warmup: float = 0.0

    def at(self, epoch: float) -> float:
        """The weight after so many epochs, which may be a fraction."""
        return self.weight if epoch >= self.warmup else self.weight * epoch / self.warmup


@dataclass(frozen=True)
class Part:
    """One method at work: its label, the method, its share, and the teacher it listens to."""

    label: str
    method: DistillationMethod
    share: Share
    teacher: str


class Distillation(nn.Module):
    """Methods and their shares. It owns their helper parameters and nothing of the networks.

    A label is a method's name, or `method@teacher` for one of several teachers; the same method may listen to each.
    Losses are computed in float32 whatever the networks' precision: Gram matrices and logarithms need it.
    """

    def __init__(self, methods: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self.methods = nn.ModuleDict()
        for label, options in (methods or {}).items():
            name, _, teacher = label.partition("@")
            method, share = create(name, options)
            self.methods[label] = method
            self.parts.append(Part(label, method, share, teacher or MAIN))

    @property
    def needs(self) -> frozenset[Need]:
        """What all methods together read of the student."""
        return frozenset().union(*(part.method.needs for part in self.parts))

    @property
    def teachers(self) -> dict[str, frozenset[Need]]:
        """The teachers listened to, and what is read of each."""
        found: dict[str, frozenset[Need]] = {}
        for part in self.parts:
            found[part.teacher] = found.get(part.teacher, frozenset()) | part.method.needs
        return found

    @property
    def two_stage(self) -> bool:
        """Whether some method has a first stage of its own."""
        return any(part.method.two_stage for part in self.parts)

    def build(self, student: Outputs, teachers: Teachers, training_set: TrainingSet) -> None:
        """Create every method's helpers for the shapes of these example outputs."""
        by_name = _by_name(teachers)
        for part in self.parts:
            part.method.build(student, by_name[part.teacher], training_set)

    def forward(self, student: Outputs, teachers: Teachers, targets: Targets, epoch: float = 0.0) -> Losses:
        """The weighted losses of all methods, by "method/place"."""
        found: Losses = {}
        for part, ours, theirs in self._in_float32(student, teachers):
            with torch.autocast(device_type(student), enabled=False):
                losses = part.method.losses(ours, theirs, targets)
            weight = part.share.at(epoch)
            found |= {f"{part.label}/{place}": weight * loss for place, loss in losses.items()}
        return found

    def initialise(self, student: Outputs, teachers: Teachers, targets: Targets) -> Losses:
        """The weighted losses of the first stage of two-stage methods."""
        found: Losses = {}
        for part, ours, theirs in self._in_float32(student, teachers):
            with torch.autocast(device_type(student), enabled=False):
                losses = part.method.initialise(ours, theirs, targets)
            found |= {f"{part.label}/{place}": part.share.weight * loss for place, loss in losses.items()}
        return found

    def extra_parameters(self) -> dict[str, int]:
        """Trainable helper parameters of each method; none of them is deployed."""
        return {part.label: sum(p.numel() for p in part.method.parameters() if p.requires_grad) for part in self.parts}

    def _in_float32(self, student: Outputs, teachers: Teachers) -> Iterator[tuple[Part, Outputs, Outputs]]:
        ours = in_float32(student)
        theirs = {name: in_float32(outputs) for name, outputs in _by_name(teachers).items()}
        for part in self.parts:
            yield part, ours, theirs[part.teacher]


def _by_name(teachers: Teachers) -> Mapping[str, Outputs]:
    return {MAIN: teachers} if isinstance(teachers, Outputs) else teachers


def create(name: str, options: Mapping[str, Any]) -> tuple[DistillationMethod, Share]:
    """A method by name, with its options and share; errors name the nearest known word."""
    if name not in METHODS:
        raise ConfigError(f"distillation: there is no method {name!r}{suggest(name, METHODS)}")
    kind = METHODS[name]
    known = [*COMMON_OPTIONS, *inspect.signature(kind).parameters]
    for option in options:
        if option not in known:
            raise ConfigError(f"distillation: {name} has no option {option!r}{suggest(option, known)}")
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


def device_type(outputs: Outputs) -> str:
    """Where the outputs are: "cpu", "cuda"."""
    for value in (outputs.logits, outputs.reentry, *outputs.taps.values(), *outputs.stages.values()):
        if value is not None:
            return value.device.type
    return "cpu"
