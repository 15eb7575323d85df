"""Partial students: a teacher as it is, but for one part of it, which is a student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from redistill.internal.text import format_bytes
from redistill.memory.meter import measure
from redistill.report import Comparison
from redistill.student import Student, record_of
from redistill.tracing.copying import clone, in_mode
from redistill.tracing.meta import Meta

_OF_THE_PART = frozenset((
    "meta", "record", "plan", "patches", "taps", "stages", "teacher_profile", "profile", "reentry", "provenance",
))  # fmt: skip


class PartialStudent(nn.Module):
    """The teacher's own class with a student in the place of one part, where the whole cannot be traced.

    Detectors and the like: how many boxes they yield depends on the picture, so no graph holds the whole of them. It is
    called as the teacher is, in train mode too, is an instance of its class, and its state dict keeps the teacher's
    keys. What it knows of itself (``plan``, ``taps``, ``profile``, ``report()``) is of the part alone, which lies where
    the teacher has it, and is compared with the teacher's there: ``Distiller(student.part, teacher.backbone)``.
    What the whole needs no graph can tell; it was measured while it ran on the example, and a note says it.
    Made by :func:`redistill.transform`. A name that the teacher has itself is the teacher's.

    Example:
        >>> import torch, redistill
        >>> class Peaks(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, 2, 1))
        ...     def forward(self, image):
        ...         return self.body(image).relu().nonzero()
        >>> student = redistill.transform(Peaks(), torch.zeros(1, 3, 32, 32), budget="1.5x", taps="none")
        >>> isinstance(student, Peaks), type(student.body).__name__, student.plan.factors
        (True, 'Student', (2,))
    """

    path_of_part: str

    @property
    def part(self) -> Student:
        """The student within."""
        found = self.get_submodule(self.path_of_part)
        assert isinstance(found, Student)
        return found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _OF_THE_PART:
                raise
            return getattr(self.part, name)

    def report(self) -> str:
        """The terminal report, of the part."""
        return Student.report(self.part)

    def comparison(self) -> Comparison:
        """What the reports show, of the part."""
        return Student.comparison(self.part)

    def save(self, directory: str | Path) -> Path:
        """Write the recipe, and the weights of the whole, to ``directory``, whole or not at all.

        Raises:
            StudentError: the folder cannot be written, or holds something that is not a student.
        """
        return Student.save(self, directory)  # type: ignore[arg-type]


def put_in_place(teacher: nn.Module, path: str, part: Student) -> Student:
    """A copy of ``teacher`` with weights of its own, and ``part`` in place of its submodule at ``path``.

    It is a :class:`PartialStudent`, which has what a student has.
    """
    whole, own = clone(teacher), teacher.get_submodule(path)
    kind = type(teacher)
    whole.__class__ = type(f"{kind.__name__}Student", (kind, PartialStudent), {"__module__": __name__})
    whole.__dict__["path_of_part"] = path
    for place, module in teacher.named_modules(remove_duplicate=False):
        if module is own:
            whole.set_submodule(place, part)
    return cast(Student, whole)


def note_measured(whole: Student, teacher: nn.Module, example: Any) -> Student:
    """``whole`` with a note of the peaks that were measured, in eval mode, while it, its teacher and the part ran."""
    record, path = record_of(whole), str(whole.path_of_part)
    within = [measure(in_mode(n.get_submodule(path), training=False), record.example()) for n in (teacher, whole)]
    around = [measure(in_mode(n, training=False), example) for n in (teacher, whole)]
    told = (
        f"{name} {' -> '.join(map(format_bytes, peaks))}" for name, peaks in ((path, within), ("the whole", around))
    )
    first, *others = record.provenance.notes
    notes = (first, f"measured while running as it is: {', '.join(told)}", *others)
    whole.meta[Meta.RECORD] = replace(record, provenance=replace(record.provenance, notes=notes))
    return whole
