"""The formats: how each file is built, run and named, and what must be installed for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from redistill.errors import ExportError, MissingExtraError
from redistill.export import executorch, onnx, pt2, tflite
from redistill.export.microcontroller import InterpreterArena, measure_arena
from redistill.export.preparation import PreparedModel

if TYPE_CHECKING:
    from redistill.export.accounting import Account


@dataclass(frozen=True)
class Built:
    """A file's bytes, and where the format plans an arena, that beside the prediction and ExecuTorch's own plans."""

    data: bytes
    account: Account | None = None
    own_plans: dict[str, int] | None = None


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        needs: the packages it is built and run with, and the extra of redistill that brings them.
        holds_metadata: False where the metadata goes into a file beside it.
        quantized: whether it can hold an int8 network.
        inspect: asked for the interpreter's arena once parity has been found.
    """

    name: str
    suffix: str
    about: str
    build: Callable[[PreparedModel], Built]
    run: Callable[[bytes, Sequence[Tensor]], list[Tensor]]
    needs: tuple[str, ...] = ()
    extra: str = "export"
    holds_metadata: bool = True
    quantized: bool = True
    inspect: Callable[[bytes], InterpreterArena] | None = None

    def check_installed(self) -> None:
        """Raise MissingExtraError unless what it needs is there."""
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(f"--format {self.name} needs {package}; pip install 'redistill[{self.extra}]'")


def _build_executorch(prepared: PreparedModel) -> Built:
    return Built(bytes(executorch.lower(prepared, delegate=True).buffer))


def _build_portable(prepared: PreparedModel) -> Built:
    certificate = executorch.certify(prepared)
    return Built(certificate.data, certificate.account, certificate.own_plans)


FORMATS = {
    f.name: f
    for f in (
        Format(
            "executorch", ".pte", "the file for phones and boards: XNNPACK kernels",
            _build_executorch, executorch.run_program, ("executorch",),
        ),
        Format(
            "executorch-portable", ".pte", "the certificate: portable kernels, every activation in one planned arena",
            _build_portable, executorch.run_program, ("executorch",), quantized=False,
        ),
        Format(
            "onnx", ".onnx", "for interchange and ONNX Runtime",
            lambda prepared: Built(onnx.build(prepared)), onnx.run,
            ("onnx", "onnxscript", "onnxruntime"),
        ),
        Format("pt2", ".pt2", "torch.export's archive", lambda prepared: Built(pt2.build(prepared)), pt2.run),
        Format(
            "tflite", ".tflite", "TensorFlow Lite, run in the interpreter for microcontrollers",
            lambda prepared: Built(tflite.build(prepared)), tflite.run,
            ("litert_torch", "tflite_micro"), "tflm", holds_metadata=False, inspect=measure_arena,
        ),
    )
}  # fmt: skip


def format_named(name: str) -> Format:
    """The format of that name, if what it needs is installed.

    Raises:
        ExportError: no such format, or a package is missing.
    """
    if name not in FORMATS:
        raise ExportError(f"unknown format {name!r}; one of {', '.join(FORMATS)}")
    FORMATS[name].check_installed()
    return FORMATS[name]
