"""Analysis: all that is known of a teacher before a plan is chosen."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.internal.text import list_some
from redistill.memory.conventions import DEPLOY, Convention
from redistill.memory.lifetimes import MemoryProfile, check_dtype
from redistill.memory.profiling import count_parameters, profile, profile_record
from redistill.memory.recording import GraphRecord, record_graph
from redistill.passes.reduce_input import ReduceInputPass, ReduceJoinedPass
from redistill.passes.reorder import ReorderPass
from redistill.passes.return_maps import ReturnMapsPass
from redistill.passes.running import run_passes
from redistill.planning.crossings import Crossing, find_crossings
from redistill.planning.partition import find_stages
from redistill.planning.stages import StageGraph
from redistill.tracing.call import Call
from redistill.tracing.capture import capture
from redistill.tracing.contexts import undisturbed


@dataclass(frozen=True)
class Analysis:
    """A teacher's graph (over the teacher's own modules), its profile, stages and crossings.

    ``call`` is how the teacher is called, ``config`` its own where it has one, ``own_order`` the record of its
    operations as they were, where their order is another now.
    """

    graph_module: GraphModule
    inputs: tuple[Tensor, ...]
    convention: Convention
    dtype: str | None
    profile: MemoryProfile
    stages: StageGraph
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...]
    training: bool
    call: Call
    config: Any = None
    seconds: float = 0.0
    own_order: GraphRecord | None = None

    @property
    def name(self) -> str:
        """The teacher's class."""
        return type(self.graph_module).__name__


@undisturbed
def analyze(
    teacher: nn.Module,
    example_input: Any,
    convention: Convention = DEPLOY,
    dtype: str | None = None,
    reorder: bool = False,
    reduce_input: bool = False,
    leaf_modules: Iterable[type[nn.Module]] = (),
    check: bool = True,
) -> Analysis:
    """Trace, check, profile and partition ``teacher``; with ``reorder``, in the order of least memory.

    With ``reduce_input`` the image has a stage of its own, so that a plan may begin by making it smaller.

    Raises:
        ModelError: the teacher does not run on the inputs, or an unknown type.
        TraceError: it cannot be traced, or the trace fails a check.
    """
    started = time.perf_counter()
    check_dtype(dtype)
    captured = capture(teacher, example_input, leaf_modules, check)
    graph_module, inputs, notes = captured.graph_module, captured.inputs, captured.notes
    own_order = record_graph(graph_module, inputs, dtype) if reorder else None
    if reorder:
        ReorderPass(convention)(graph_module)
        notes += ("operations are in the order of least memory",)
    record = record_graph(graph_module, inputs, dtype)
    if reduce_input:
        run_passes(graph_module, [ReduceInputPass()])
    stages = find_stages(graph_module, inputs, dtype, None if reduce_input else record)
    if stages.joins:
        run_passes(graph_module, [ReduceJoinedPass(stages.joins)])
        stages = find_stages(graph_module, inputs, dtype)
    if stages.returned:
        notes += (f"returned and read on, enlarged cell by cell where pooled: {list_some(stages.returned)}",)
        run_passes(graph_module, [ReturnMapsPass(stages.returned)])
        stages = find_stages(graph_module, inputs, dtype)
    if stages.shared:
        notes += (f"called at several places, with one factor for all: {list_some(stages.shared)}",)
    if convention.of_module:  # the module's own Python frames, which no rewritten graph has
        found = profile(teacher, example_input, convention, dtype)
    else:
        found = replace(profile_record(record, convention), parameters=count_parameters(teacher), dtype=dtype)
    crossings = find_crossings(graph_module, stages)
    return Analysis(
        graph_module,
        inputs,
        convention,
        dtype,
        found,
        stages,
        crossings,
        notes,
        teacher.training,
        captured.call,
        copy.copy(getattr(teacher, "config", None)),
        seconds=time.perf_counter() - started,
        own_order=own_order,
    )
