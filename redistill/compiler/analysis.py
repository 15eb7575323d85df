"""Analysis: all that is known of a teacher before a plan is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.memory.conventions import MemoryProfile, check_convention
from redistill.memory.profiling import count_parameters, profile, profile_record
from redistill.passes.reorder import ReorderPass
from redistill.planning.crossings import Crossing, find_crossings
from redistill.planning.stages import StageGraph, find_stages
from redistill.tracing.capture import capture


@dataclass(frozen=True)
class Analysis:
    """A teacher's graph (over the teacher's own modules), its profile, stages and crossings."""

    graph_module: GraphModule
    inputs: tuple[Tensor, ...]
    convention: str
    dtype: str | None
    profile: MemoryProfile
    stages: StageGraph
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...]
    training: bool

    @property
    def name(self) -> str:
        """The teacher's class."""
        return type(self.graph_module).__name__


def analyze(
    teacher: nn.Module,
    inputs: tuple[Tensor, ...],
    convention: str = "deploy",
    dtype: str | None = None,
    reorder: bool = False,
    leaf_modules: Iterable[type[nn.Module]] = (),
    check: bool = True,
) -> Analysis:
    """Trace, check, profile and partition ``teacher``; with ``reorder``, in the order of least memory.

    Raises:
        ModelError: the teacher does not run on the inputs, or an unknown convention.
        TraceError: it cannot be traced, or the trace fails a check.
    """
    check_convention(convention, dtype)
    captured = capture(teacher, inputs, leaf_modules, check)
    graph_module, notes = captured.graph_module, captured.notes
    if reorder:
        ReorderPass(convention)(graph_module)
        notes += ("operations are in the order of least memory",)
    stages = find_stages(graph_module, inputs, dtype)
    if convention == "eager":  # the module's own Python frames, which no rewritten graph has
        found = profile(teacher, inputs, "eager", dtype)
    else:
        found = replace(profile_record(stages.record, convention), parameters=count_parameters(teacher), dtype=dtype)
    crossings = find_crossings(graph_module, stages)
    return Analysis(graph_module, inputs, convention, dtype, found, stages, crossings, notes, teacher.training)
