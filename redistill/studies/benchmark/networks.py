"""What one network needs: memory as predicted and as measured, work, size, and the part of the RED blocks."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from redistill.export.executorch import certify
from redistill.export.preparation import prepare
from redistill.memory.conventions import CONVENTIONS
from redistill.memory.lifetimes import MemoryProfile
from redistill.memory.meter import measure
from redistill.memory.profiling import count_parameters, profile, profile_record
from redistill.memory.recording import record_graph
from redistill.report.data import RED_BLOCKS, is_red_block
from redistill.studies.benchmark.results import DevicePeak, Network, RedShare
from redistill.tracing.capture import capture

Inputs = tuple[Tensor, ...]


def predict(model: nn.Module, inputs: Inputs) -> dict[str, MemoryProfile]:
    """The profile under each convention; the graph is traced and recorded once."""
    graph_module = model if isinstance(model, GraphModule) else capture(model, inputs, check=False).graph_module
    record = record_graph(graph_module, inputs)
    found = {name: profile_record(record, convention) for name, convention in CONVENTIONS.items()}
    if graph_module is not model:
        found["eager"] = profile(model, inputs, "eager")
    return found


def describe_network(
    model: nn.Module,
    inputs: Inputs,
    profiles: Mapping[str, MemoryProfile],
    device: str = "cpu",
    arena: int | None = None,
) -> Network:
    """The figures of one network, which is left on the CPU."""
    return Network(
        peaks={name: found.peak_bytes for name, found in profiles.items()},
        measured=measure(model, inputs),
        macs=count_macs(model, inputs),
        parameters=count_parameters(model),
        file_bytes=size_on_disk(model),
        arena=arena,
        device=measure_device(model, inputs) if device == "cuda" else None,
    )


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one run: half of what ``torch.utils.flop_counter`` counts."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def size_on_disk(model: nn.Module) -> int:
    """Bytes of the weights as a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        safetensors.torch.save_model(model, str(path))
        return path.stat().st_size


def plan_arena(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that ExecuTorch's memory plan sets aside for activations in portable kernels, nothing in place.

    Raises:
        ExportError: the network cannot be exported.
    """
    return certify(prepare(model, inputs, "arena")).account.planned


def measure_device(model: nn.Module, inputs: Inputs) -> DevicePeak:
    """What CUDA's allocator gives out at most while a copy of the network runs, the inputs included.

    One run before it makes the libraries take what they keep for good.
    """
    moved, given = copy.deepcopy(model).cuda(), tuple(x.cuda() for x in inputs)
    with torch.no_grad():
        moved(*given)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        moved(*given)
        torch.cuda.synchronize()
    allocated = torch.cuda.max_memory_allocated() - before + sum(x.nbytes for x in given)
    return DevicePeak(allocated, measure(moved, given))


def share_of_red(student: nn.Module, deployed: MemoryProfile) -> RedShare:
    """The part of the RED blocks in a student whose ``deploy`` profile is ``deployed``."""
    blocks = [step for step in deployed.timeline if is_red_block(step)]
    return RedShare(
        parameters=_part(dict(student.named_parameters()), lambda x: x.numel()),
        macs=sum(step.macs for step in blocks) / max(deployed.macs, 1),
        weight_bytes=_part(student.state_dict(), lambda x: x.nbytes),
        peak=max((step.live_bytes for step in blocks), default=0) / deployed.peak_bytes,
    )


def _part(tensors: Mapping[str, Tensor], size: Callable[[Tensor], int]) -> float:
    of_blocks = sum(size(x) for name, x in tensors.items() if name.startswith(f"{RED_BLOCKS}."))
    return of_blocks / max(sum(map(size, tensors.values())), 1)
