"""The front door: a student, its teachers and the methods that compare them, as one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from redistill.distillation.combination import Distillation
from redistill.distillation.method import Losses, Outputs, Targets, TrainingSet
from redistill.distillation.pairing import example_inputs
from redistill.distillation.registry import Methods
from redistill.distillation.share import MAIN
from redistill.distillation.views import View, view_student, view_teacher
from redistill.errors import ConfigError
from redistill.internal.suggestions import suggest
from redistill.student import Student


class Distiller(nn.Module):
    """Run a student beside its teachers, and compare them by any methods.

    Registered, and so in ``parameters()`` and ``state_dict()``, are the student (``student``) and the methods' helpers
    (``distillation``), which are trained with it and not deployed. Teachers are frozen, stay in evaluation mode, move
    with ``to()``, and are in no state dict.

    Args:
        student: what :func:`redistill.transform` made, or any module if the methods look at outputs alone.
        teacher: a network that takes the same inputs, or several by name; methods listen to the one called
            ``"teacher"``, those labelled ``method@name`` to another. It is frozen and put into evaluation mode.
        methods: as :class:`~redistill.distillation.Distillation` takes them: ``"red+kd"``, ``{"kd": {"temperature":
            2.0}}``, ``[MyMethod()]``, ``"package.module:Name"``; :func:`redistill.methods` lists ours.
        example: a batch of inputs, a tensor or a tuple, from which methods learn the shapes of what is shown; by
            default zeros like those that the student was made for.
        training_set: size and labels of the training set, for the methods that need them (``crd``).

    Raises:
        ConfigError: an unknown method or option, a teacher that is not there or shares weights with the student.
        TapError: a method that these networks do not suit.

    Example:
        >>> teacher = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> student, images = copy.deepcopy(teacher), torch.randn(4, 3, 8, 8)
        >>> distil = Distiller(student, teacher, "kd", example=images)
        >>> logits, losses = distil(images, labels=torch.tensor([0, 1, 2, 3]))
        >>> logits.shape, sorted(losses)
        (torch.Size([4, 8]), ['kd/logits'])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Mapping[str, nn.Module] | None = None,
        methods: Methods = (),
        *,
        example: Tensor | tuple[Tensor, ...] | None = None,
        training_set: TrainingSet | None = None,
    ) -> None:
        super().__init__()
        teachers = {MAIN: teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
        self.student, self.distillation = student, Distillation(methods)
        _check_teachers(student, teachers, self.distillation.teachers)
        self.student_view = view_student(student, self.distillation.needs)
        asked = self.distillation.teachers.items()
        self.teacher_views = {name: view_teacher(student, teachers[name], needs) for name, needs in asked}
        if self.distillation.parts:
            self._build(_as_inputs(student, example), training_set)

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
        epoch: float = 0.0,
        first_stage: bool = False,
    ) -> tuple[Tensor, Losses]:
        """Run student and teachers on a batch, and compare them.

        Args:
            inputs: what the networks take, images [B, C, H, W] first.
            labels: class indices [B], or weights of the classes [B, K] where images are blended; few methods need any.
            indices: positions of the images in the training set [B]; only ``crd`` needs them.
            epoch: epochs done, for weights that rise by ``warmup``.
            first_stage: the losses of the first stage of two-stage methods (``ab``, ``ft``, ``fsp``) instead.

        Returns:
            The student's output, and the weighted losses, scalars by "method/place"; minimise their sum and the task's.

        Example:
            >>> import copy
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> images = torch.randn(4, 3, 32, 32)
            >>> distil = Distiller(copy.deepcopy(teacher), teacher, "kd", example=images)
            >>> logits, losses = distil(images, labels=torch.tensor([1, 5, 0, 2]), epoch=0.5)
            >>> {name: round(loss.item(), 3) for name, loss in losses.items()}  # twins, as yet
            {'kd/logits': 0.0}
        """
        blended = labels is not None and labels.is_floating_point()
        targets = Targets(labels=None if blended else labels, soft=labels if blended else None, indices=indices)
        return self.compare(inputs, targets, epoch, first_stage)

    def compare(
        self, inputs: tuple[Tensor, ...], targets: Targets, epoch: float = 0.0, first_stage: bool = False
    ) -> tuple[Tensor, Losses]:
        """The same as calling it, with all that is known of the batch as :class:`Targets`.

        Example:
            >>> import copy
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> images = torch.randn(4, 3, 32, 32)
            >>> distil = Distiller(copy.deepcopy(teacher), teacher, "kd", example=images)
            >>> _, losses = distil.compare((images,), Targets(labels=torch.tensor([1, 5, 0, 2])))
            >>> list(losses)
            ['kd/logits']
        """
        self.distillation.begin(epoch)
        student = self.student_view(*inputs)
        teachers = {name: view(*inputs) for name, view in self.teacher_views.items()}
        assert student.logits is not None
        if first_stage:
            return student.logits, self.distillation.initialise(student, teachers, targets)
        return student.logits, self.distillation(student, teachers, targets, epoch)

    @property
    def views(self) -> tuple[View, ...]:
        """How the student and the teachers are run."""
        return (self.student_view, *self.teacher_views.values())

    def with_student(self, student: nn.Module, view: View) -> Distiller:
        """The same teachers and methods for another network, seen through ``view``, that shows the same features.

        Example:
            >>> import copy
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> images = torch.randn(4, 3, 32, 32)
            >>> distil = Distiller(copy.deepcopy(teacher), teacher, "kd", example=images)
            >>> other = load_model("redistill:cifar_resnet?depth=14", "random")
            >>> distil.with_student(other, View(other)).student is other
            True
        """
        twin = copy.copy(self)
        twin._modules = {**self._modules, "student": student}
        twin.student_view = view
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Take the teachers along wherever the student goes: ``to``, ``cuda``, ``half``."""
        for view in self.teacher_views.values():
            view.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def _build(self, inputs: tuple[Tensor, ...], training_set: TrainingSet | None) -> None:
        """Let the methods make their helpers for the shapes of what is shown."""
        training = self.student.training
        self.student.eval()
        student: Outputs = self.student_view(*inputs)
        self.student.train(training)
        assert student.logits is not None
        facts = training_set or TrainingSet(samples=0, classes=student.logits.shape[1])
        self.distillation.build(student, {name: view(*inputs) for name, view in self.teacher_views.items()}, facts)
        self.distillation.to(student.logits.device)
        self.student_view.route(self.distillation.routes())


def _as_inputs(student: nn.Module, example: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    if example is not None:
        return (example,) if isinstance(example, Tensor) else tuple(example)
    if isinstance(student, Student):
        return example_inputs(student, student)
    raise ConfigError(
        f"methods learn shapes from a batch, and a {type(student).__name__} has none; give example=images"
    )


def _check_teachers(student: nn.Module, teachers: Mapping[str, nn.Module], asked: Mapping[str, object]) -> None:
    for name in asked:
        if name not in teachers:
            raise ConfigError(f"distillation: there is no teacher {name!r}{suggest(name, teachers)}")
    own = {id(parameter) for parameter in student.parameters()}
    for name, teacher in teachers.items():
        if any(id(parameter) in own for parameter in teacher.parameters()):
            raise ConfigError(f"{name} and student share weights, and a teacher is frozen; give copy.deepcopy of one")
