"""Joining a student to its teachers: what each shows, and the methods that compare it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import redistill
from redistill.distillation import Distillation
from redistill.distillation.views import StudentView, view_teacher
from redistill.errors import ConfigError
from redistill.internal import seeding
from redistill.trainers.experiment import Experiment
from redistill.trainers.task import Lessons, Task

PROBE = 32
"""Images from which methods learn the shapes of what is shown."""


def join(experiment: Experiment[Any], student: nn.Module, teachers: Mapping[str, nn.Module]) -> Task:
    """The student's task: alone where no method is asked for, else with lessons by all of them.

    Raises:
        ConfigError: methods for a network without taps.
        TapError: a method that what is shown does not suit.
    """
    distillation = Distillation(experiment.config.distillation.methods)
    if not distillation.parts:
        return experiment.make_task(student)
    if not isinstance(student, redistill.Student):
        raise ConfigError("methods need a student with taps; set student.budget, student.factors or student.folder")
    views = {name: view_teacher(student, teachers[name], needs) for name, needs in distillation.teachers.items()}
    lessons = Lessons(StudentView(student, distillation.needs), views, distillation)
    task = experiment.make_task(student, lessons)
    _build(experiment, student, lessons)
    return task


def _build(experiment: Experiment[Any], student: nn.Module, lessons: Lessons) -> None:
    """Let the methods make their helpers for the shapes of some images."""
    data = experiment.data
    inputs = experiment.inputs(range(min(PROBE, len(data.calibration))))
    student.eval()
    with torch.no_grad(), seeding.seeded(experiment.config.run.seed, "helpers"):
        shown = {name: show(*inputs) for name, show in lessons.teachers.items()}
        lessons.distillation.build(lessons.student(*inputs), shown, data.training_set)
