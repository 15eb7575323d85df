"""TensorFlow Lite: a file for microcontrollers, run in the interpreter that runs there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from redistill.export.subject import Subject


def build(subject: Subject) -> bytes:
    raise NotImplementedError


def run(data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    raise NotImplementedError
