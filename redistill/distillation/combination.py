"""Several methods at once: the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redistill.distillation.method import DistillationMethod, Losses, Need, Outputs, Targets, TrainingSet
from redistill.distillation.registry import Methods, as_mapping, create
from redistill.distillation.share import MAIN, Share
from redistill.errors import ConfigError

Teachers = Outputs | Mapping[str, Outputs]
"""What one teacher shows, or several by name."""


@dataclass(frozen=True)
class Part:
    """One method at work, and its share in the sum."""

    method: DistillationMethod
    share: Share

    @property
    def label(self) -> str:
        """The method's name, with the teacher's where it is not the first: ``kd``, ``kd@large``."""
        teacher = self.share.teacher
        return self.method.name if teacher == MAIN else f"{self.method.name}@{teacher}"


class Distillation(nn.Module):
    """Methods and their shares. It owns their helper parameters and nothing of the networks.

    Args:
        methods: ``"red+kd"``; ``{"kd": {"temperature": 2.0, "weight": 0.9}}``; or a list of words, classes and objects
            (one's own, derived from :class:`DistillationMethod`). ``"kd@NAME"`` listens to one of several teachers; the
            same method may listen to each.

    Losses are computed in float32 whatever the networks' precision: Gram matrices and logarithms need it.

    Raises:
        ConfigError: an unknown method or option; the message suggests the nearest.

    Example:
        >>> Distillation({"kd": {"temperature": 2.0}}).needs
        frozenset({<Need.LOGITS: 'logits'>})
    """

    def __init__(self, methods: Methods = ()) -> None:
        super().__init__()
        self.parts: list[Part] = []
        self.methods = nn.ModuleDict()
        for asked, options in as_mapping(methods).items():
            word, _, teacher = asked.partition("@") if isinstance(asked, str) else (asked, "", "")
            self._add(Part(*create(word, {"teacher": teacher or MAIN, **options})))

    def _add(self, part: Part) -> None:
        if part.label in self.methods:
            raise ConfigError(f"distillation: {part.label} is asked for twice; give one of them a name of its own")
        self.methods[part.label] = part.method
        self.parts.append(part)

    @property
    def needs(self) -> frozenset[Need]:
        """What all methods together read of the student."""
        return frozenset().union(*(part.method.needs for part in self.parts))

    @property
    def teachers(self) -> dict[str, frozenset[Need]]:
        """The teachers listened to, and what is read of each."""
        found: dict[str, frozenset[Need]] = {}
        for part in self.parts:
            found[part.share.teacher] = found.get(part.share.teacher, frozenset()) | part.method.needs
        return found

    @property
    def two_stage(self) -> bool:
        """Whether some method has a first stage of its own."""
        return any(part.method.two_stage for part in self.parts)

    def build(self, student: Outputs, teachers: Teachers, training_set: TrainingSet) -> None:
        """Create every method's helpers for the shapes of these example outputs."""
        by_name = _by_name(teachers)
        for part in self.parts:
            part.method.build(student, by_name[part.share.teacher], training_set)

    def begin(self, epoch: float) -> None:
        """Prepare every method for a step, before the networks run."""
        for part in self.parts:
            part.method.begin(epoch)

    def routes(self) -> dict[str, list[nn.Module]]:
        """What the student's maps go through while it trains, by the name of a coarse stage."""
        found: dict[str, list[nn.Module]] = {}
        for part in self.parts:
            for name, module in part.method.routes().items():
                found.setdefault(name, []).append(module)
        return found

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
            yield part, ours, theirs[part.share.teacher]


def _by_name(teachers: Teachers) -> Mapping[str, Outputs]:
    return {MAIN: teachers} if isinstance(teachers, Outputs) else teachers


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
        coarse=each(outputs.coarse),
    )


def device_type(outputs: Outputs) -> str:
    """Where the outputs are: "cpu", "cuda"."""
    for value in (outputs.logits, outputs.reentry, *outputs.taps.values(), *outputs.stages.values()):
        if value is not None:
            return value.device.type
    return "cpu"
