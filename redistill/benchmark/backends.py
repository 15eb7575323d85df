"""Ways to run a network: PyTorch eager, torch.compile, ONNX Runtime, ExecuTorch with XNNPACK."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redistill.errors import RedistillError

Inputs = tuple[Tensor, ...]
Run = Callable[[], Any]
LARGEST_DEVIATION = 1e-3  # of outputs, relative to the largest: beyond, another computation is timed


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
    """The exported ONNX graph in ONNX Runtime on the CPU, at its default level of optimisation."""
    runtime: Any = importlib.import_module("onnxruntime")
    program: Any = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: [torch.from_numpy(array) for array in session.run(None, feed)]


def run_executorch(model: nn.Module, inputs: Inputs, threads: int) -> Run:
    """The exported program in ExecuTorch's own runtime, what XNNPACK knows delegated to it."""
    exir: Any = importlib.import_module("executorch.exir")
    partition: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    program = torch.export.export(model, inputs)
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])
    importlib.import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
    runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
    file = lowered.to_executorch().buffer
    loaded = runtime.load_program(file)
    return _Method(file, loaded, loaded.load_method("forward"), inputs)


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
    "onnxruntime": Backend("ONNX Runtime", run_onnxruntime, ("onnx", "onnxscript", "onnxruntime")),
    "executorch": Backend("ExecuTorch XNNPACK", run_executorch, ("executorch",)),
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
        with _quiet(), torch.no_grad():
            run = backend.prepare(model, inputs, threads)
            deviation = _deviation(run(), model(*inputs))
    except Exception as error:  # any of the exporters' many
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RedistillError(f"{name} cannot run the network: {type(error).__name__}: {reason}") from error
    if not deviation <= LARGEST_DEVIATION:
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


def _deviation(found: Any, expected: Any) -> float:
    """Largest difference of the first tensors, relative to the largest value."""
    ours, theirs = (next(x for x in tree_leaves(tree) if isinstance(x, Tensor)) for tree in (found, expected))
    largest = theirs.abs().max().clamp_min(torch.finfo(theirs.dtype).tiny)
    return float((ours - theirs).abs().max() / largest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
