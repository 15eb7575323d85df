"""Ways to run a network: in PyTorch, eager or compiled, and as the files that ``redistill.export`` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from redistill.errors import RedistillError
from redistill.export.formats import FORMATS
from redistill.export.parity import FLOAT_BOUND, relative_error
from redistill.export.preparation import prepare as prepare_network
from redistill.export.preparation import tensors_of
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly, standard_error

Inputs = tuple[Tensor, ...]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Backend:
    """How a network is made ready on a backend; what must be installed for it, and by which extra."""

    title: str
    prepare: Callable[[nn.Module, Inputs, int], Run]
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)

    @property
    def missing(self) -> str | None:
        """The first package that is not installed."""
        return next((name for name in self.packages if find_spec(name) is None), None)


def run_eager(model: nn.Module, inputs: Inputs, threads: int) -> Run:
    """The module as it is."""
    return _synchronized(lambda: model(*inputs), inputs)


def run_compiled(model: nn.Module, inputs: Inputs, threads: int) -> Run:
    """``torch.compile`` with its default settings, shapes static."""
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=False)
    return _synchronized(lambda: compiled(*inputs), inputs)


def run_onnxruntime(model: nn.Module, inputs: Inputs, threads: int) -> Run:
    """The ONNX file in ONNX Runtime on the CPU, at its default level of optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = FORMATS["onnx"].build(prepare_network(model, inputs)).data
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: [torch.from_numpy(array) for array in session.run(None, feed)]


def run_executorch(model: nn.Module, inputs: Inputs, threads: int) -> Run:
    """The ExecuTorch file in its own runtime, what XNNPACK knows delegated to it."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    file = FORMATS["executorch"].build(prepare_network(model, inputs)).data
    _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(file)
    return _Method(file, program, program.load_method("forward"), inputs)


@dataclass(frozen=True)
class _Method:
    """A method of a program, whose native code reads ``file`` while it runs: both must live as long as it does."""

    file: bytes
    program: Any
    method: Any
    inputs: Inputs

    def __call__(self) -> Any:
        return self.method.execute(self.inputs)


BACKENDS: Mapping[str, Backend] = {
    "eager": Backend("PyTorch eager", run_eager, devices=("cpu", "cuda")),
    "compile": Backend("torch.compile", run_compiled, devices=("cpu", "cuda")),
    "onnxruntime": Backend("ONNX Runtime", run_onnxruntime, FORMATS["onnx"].needs),
    "executorch": Backend("ExecuTorch XNNPACK", run_executorch, FORMATS["executorch"].needs),
}


def prepare(name: str, model: nn.Module, inputs: Inputs, threads: int) -> tuple[Run, float]:
    """What runs the network once, and its output's largest deviation from eager's.

    Raises:
        RedistillError: the backend is not installed or not for this device, cannot take the network, or computes
            something else; one line that names the reason.
    """
    backend, device = BACKENDS[name], inputs[0].device.type
    if backend.missing:
        raise RedistillError(f"{name} needs {backend.missing}; pip install 'redistill[export]'")
    if device not in backend.devices:
        raise RedistillError(f"{name} runs on {', '.join(backend.devices)} here, not on {device}")
    try:
        with quietly(), standard_error(), torch.no_grad():
            run = backend.prepare(model, inputs, threads)
            deviation = relative_error(tensors_of(run()), tensors_of(model(*inputs)))
    except Exception as error:  # any of the exporters' many
        why = f"{type(error).__name__}: {reason(error)}"
        raise RedistillError(f"{name} cannot run the network: {why}") from error
    if not deviation <= FLOAT_BOUND:
        raise RedistillError(f"{name} computes something else than eager: outputs differ by {deviation:.1e}, relative")
    return run, deviation


def _synchronized(call: Run, inputs: Inputs) -> Run:
    """On a GPU a call returns before its work is done."""
    if inputs[0].device.type != "cuda":
        return call

    def waiting() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting
