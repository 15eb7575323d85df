"""ExecuTorch: the XNNPACK file that runs on phones and boards, and the portable file that certifies the arena."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from redistill.errors import ExportError
from redistill.export.preparation import PreparedModel, trace_program
from redistill.export.source_map import path_of
from redistill.internal.silence import quietly, standard_error

if TYPE_CHECKING:
    from redistill.export.accounting import Account

METADATA = "redistill_metadata"


@dataclass(frozen=True)
class Certificate:
    """A portable program, its arena beside the prediction, and ExecuTorch's own plans in bytes, by algorithm."""

    data: bytes
    account: Account
    own_plans: dict[str, int]


def lower(prepared: PreparedModel, planning: Any = None, delegate: bool = False) -> Any:
    """Lower to an ``ExecutorchProgramManager``.

    Args:
        prepared: what is exported.
        planning: a memory planning pass (default: ExecuTorch's own, its greedy algorithm).
        delegate: hand what XNNPACK can run over to it; all else runs in portable kernels.

    Raises:
        ExportError: an operator that no kernel of the runtime can run; named with its module.
    """
    program = trace_program(prepared)
    described = {METADATA: json.dumps(prepared.metadata)}
    with quietly():
        from executorch.exir import ExecutorchBackendConfig
        from executorch.exir.passes import MemoryPlanningPass

        edge = _delegated(program, described) if delegate else _portable(program, described)
        _check_operators(edge.exported_program().graph.nodes)
        planning = planning or MemoryPlanningPass()
        return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass={"forward": planning}))


def _delegated(program: ExportedProgram, described: dict[str, Any]) -> Any:
    """XNNPACK takes what it can."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    config = EdgeCompileConfig(_check_ir_validity=False)  # operators are checked here, against the runtime's kernels
    return to_edge_transform_and_lower(program, None, [XnnpackPartitioner()], described, config)


def _portable(program: ExportedProgram, described: dict[str, Any]) -> Any:
    """Every operation in a portable kernel, none taken apart into more maps than it needs."""
    from executorch.exir import EdgeCompileConfig, to_edge

    from redistill.export.lowering import PRESERVED, LowerActivationsPass

    config = EdgeCompileConfig(preserve_ops=list(PRESERVED), _check_ir_validity=False)
    return to_edge(program, described, config).transform([LowerActivationsPass()])


def certify(prepared: PreparedModel) -> Certificate:
    """Lower to portable kernels with every activation in one planned arena, and account for each byte of it."""
    with quietly():
        from redistill.export.accounting import account
        from redistill.export.planning import ArenaPlanningPass

    planning = ArenaPlanningPass(prepared.overwriting)
    lowered = lower(prepared, planning)
    found = account(lowered.exported_program().graph_module, prepared)
    return Certificate(bytes(lowered.buffer), found, planning.own_plans)


def run_program(data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the file in ExecuTorch's own runtime.

    Raises:
        ExportError: the runtime cannot load or run it.
    """
    return list(_execute(data, "forward", tuple(inputs)))


def read_metadata(data: bytes) -> dict[str, Any]:
    """What a file says of itself."""
    found: dict[str, Any] = json.loads(_execute(data, METADATA, ())[0])
    return found


def _execute(data: bytes, name: str, inputs: tuple[Tensor, ...]) -> Sequence[Any]:
    with quietly(), standard_error() as said:
        from executorch.runtime import Runtime

        try:
            program = Runtime.get().load_program(data)  # the method reads it as long as it runs
            method = program.load_method(name)
            assert method is not None
            return [x.clone() if isinstance(x, Tensor) else x for x in method.execute(inputs)]  # its memory ends here
        except RuntimeError as error:
            reason = " ".join((said().strip().rpartition("\n")[2] or str(error)).split())
            raise ExportError(f"ExecuTorch's runtime cannot run the file: {reason[:200]}") from error


def planned_bytes(data: bytes) -> int:
    """The arena of a file as the runtime will reserve it: that of its ``forward``."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary(data).program.execution_plan
    return int(sum(next(plan for plan in plans if plan.name == "forward").non_const_buffer_sizes))


def _check_operators(nodes: Sequence[Node]) -> None:
    """Name the first operator without a kernel, before the lowering fails with less to say."""
    with standard_error():
        from executorch.runtime import Runtime

    known = {name.partition(".")[0] for name in Runtime.get().operator_registry.operator_names}
    for node in nodes:
        name = getattr(getattr(node.target, "_op", None), "_schema", None)
        if name is not None and name.name not in known:
            raise ExportError(
                f"ExecuTorch has no kernel for {name.name} in {path_of(node)}; write that layer by other operations, "
                "or choose --format onnx or pt2"
            )
