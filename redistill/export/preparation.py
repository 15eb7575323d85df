"""What is exported: a teacher or a student as inference runs it, with its inputs and what is known of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from redistill.errors import ExportError
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly
from redistill.memory.conventions import DEPLOY, Convention, find_convention
from redistill.memory.lifetimes import MemoryProfile
from redistill.memory.profiling import profile_record
from redistill.memory.recording import GraphRecord, record_graph
from redistill.passes.bake_convolutions import BakeConvolutionsPass
from redistill.passes.fold_batch_norm import FoldBatchNormPass
from redistill.passes.patch import lay_patches
from redistill.passes.reorder import ReorderPass
from redistill.passes.strip_guards import StripGuardsPass
from redistill.tracing.call import OverTensors, read_call
from redistill.tracing.capture import capture
from redistill.tracing.copying import clone
from redistill.tracing.meta import Meta

TRIALS = 2


@dataclass(frozen=True)
class PreparedModel:
    """A network ready for export.

    Attributes:
        reference: the network as it was given, in eval mode, called with tensors: what every file is compared with.
        graph_module: its graph with batch norms folded, over its own copy of the weights.
        whole: the same graph, before a student with patches is taken apart.
        inputs: the example inputs; their shapes are those of the file.
        convention: how its memory is predicted and, where the format has an arena, planned: ``deploy`` or ``arena``.
        record: the recorded graph.
        metadata: what the file says of itself.
        calibration: for an int8 file, the batches that its ranges are measured on, shaped like the example.
        int8: for an int8 file, the network that is in it.
    """

    reference: nn.Module
    graph_module: GraphModule
    whole: GraphModule
    inputs: tuple[Tensor, ...]
    convention: Convention
    record: GraphRecord
    metadata: dict[str, Any] = field(default_factory=dict)
    calibration: tuple[Tensor, ...] = ()
    int8: GraphModule | None = None

    @property
    def deployed(self) -> GraphModule:
        """The graph that goes into the file."""
        return self.int8 if self.int8 is not None else self.graph_module

    @property
    def profile(self) -> MemoryProfile:
        """The predicted memory."""
        return self.profile_under(self.convention)

    def profile_under(self, convention: Convention) -> MemoryProfile:
        """The predicted memory under another convention."""
        return profile_record(self.record, convention)

    @property
    def overwriting(self) -> frozenset[str]:
        """The operations whose result may overwrite an input that dies."""
        if not self.convention.overwrites:
            return frozenset()
        return frozenset(o.node for o in self.record.operations if o.overwrites)


def prepare(
    model: nn.Module,
    example_input: Any,
    convention: str | Convention = "deploy",
    reorder: bool = False,
    metadata: dict[str, Any] | None = None,
) -> PreparedModel:
    """Capture ``model`` (unless it is a graph already), fold its batch norms and record it; ``model`` is not changed.

    The file takes the tensors of the example input in their order, and returns those of the output in theirs.
    A student with patches is exported as it runs, piece by piece, the pieces put together by concatenation.
    With ``reorder`` the operations of others come in the order of least memory. ``graph`` and ``eager`` describe
    PyTorch's own runs, not a file's: such a student is exported under ``deploy``.

    Raises:
        ModelError, TraceError: the model does not run on the inputs or cannot be traced.
    """
    wanted = find_convention(convention)
    counted = DEPLOY if wanted.as_written else wanted
    call, inputs = read_call(model, example_input)
    graph_module = model if isinstance(model, GraphModule) else capture(model, example_input).graph_module
    reference = OverTensors(clone(model), call).eval()
    folded = _inference_copy(graph_module, type(model).__name__)
    for rewrite in (StripGuardsPass(), BakeConvolutionsPass(), FoldBatchNormPass()):
        rewrite(folded)
    _shape_placeholders(folded, inputs)
    patched = any(Meta.PATCH in node.meta for node in folded.graph.nodes)
    if reorder and not patched:
        ReorderPass(counted)(folded)
    form = lay_patches(folded, "concat") if patched else folded  # memory is planned by values: none is written into
    return PreparedModel(reference, form, folded, inputs, counted, record_graph(form, inputs), dict(metadata or {}))


def _inference_copy(graph_module: GraphModule, name: str) -> GraphModule:
    """The graph over copies of its modules, in eval mode."""
    plain = GraphModule(graph_module, graph_module.graph, name)
    plain.meta.clear()
    return clone(plain).eval()


def _shape_placeholders(graph_module: GraphModule, inputs: Sequence[Tensor]) -> None:
    for node, x in zip(graph_module.graph.find_nodes(op="placeholder"), inputs, strict=False):
        node.meta.update(shape=tuple(x.shape), dtype=x.dtype)


def make_int8(
    prepared: PreparedModel, calibration: Sequence[Tensor], program: GraphModule | None = None
) -> PreparedModel:
    """The prepared model as an int8 network; its memory is counted in int8 too. Parts have the scales of their maps.

    Args:
        prepared: a float one.
        calibration: batches shaped like its example, on which ranges are measured and files compared.
        program: the int8 network of the same weights, run whole, where there is one already.

    Raises:
        QuantizationError: calibration data of another shape, or a network that cannot be quantised.
    """
    return replace(
        prepared,
        int8=_quantize(prepared, calibration, program),
        calibration=tuple(calibration),
        record=record_graph(prepared.graph_module, prepared.inputs, "int8"),
        metadata={**prepared.metadata, "quantization": "int8"},
    )


def _quantize(prepared: PreparedModel, calibration: Sequence[Tensor], program: GraphModule | None) -> GraphModule:
    from redistill.quantization import quantize
    from redistill.quantization.lowering import lower_to_aten
    from redistill.quantization.parts import divide

    with quietly():
        whole = program or quantize(prepared.whole, calibration, prepared.inputs)
        if prepared.whole is prepared.graph_module:
            return whole
        return divide(whole, lower_to_aten(prepared.graph_module, prepared.inputs))


def trace_program(prepared: PreparedModel) -> ExportedProgram:
    """The ``torch.export`` program of what goes into the file.

    Raises:
        ExportError: an operation that torch.export cannot capture.
    """
    try:
        with quietly(), torch.no_grad():
            return torch.export.export(prepared.deployed, prepared.inputs)
    except Exception as error:
        name = type(prepared.graph_module).__name__
        raise ExportError(f"{name} cannot be exported: {reason(error, 300)}") from error


def trial_inputs(inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Inputs on which a file is compared with its network: the example, then random ones of the same shapes."""
    generator = torch.Generator().manual_seed(1)
    trials = [tuple(inputs)]
    for _ in range(TRIALS - 1):
        trials.append(tuple(_another(x, generator) for x in inputs))
    return trials


def _another(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normally distributed values; whole numbers (a timestep, a label) stay as they are."""
    return torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    leaves = tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
