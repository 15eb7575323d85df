"""Which values become int8: XNNPACK's rules, with ReLU6 fused into the operation before it.

Imports executorch and torchao; import this module only after :func:`~redistill.quantization.backend.require_backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationConfig, QuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from redistill.errors import QuantizationError
from redistill.quantization.folding import FOLDABLE

SMALLEST_SCALE = 2.0**-14
"""What torch's fused fake quantiser bounds scales by."""
CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.relu6.default)


class Int8Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """Activations in int8 with one scale and zero point, weights symmetric with one scale a channel.

    XNNPACK runs a convolution and the ReLU6 after it as one operation, but its quantiser fuses only ReLU: it would
    spend a pair of quantise and dequantise, and half of the range, on values that the clamp then throws away.

    Args:
        float_modules: paths of modules that stay in floating point, with all that they contain.
        training: fake quantisers for quantisation-aware training, instead of observers.
    """

    # Batch norms are folded before: the patterns with one would be traced, for a minute, and match nothing.
    SUPPORTED_PATTERNS = [p for p in XNNPACKQuantizer.SUPPORTED_PATTERNS if not p.is_qat]  # noqa: RUF012

    def __init__(self, float_modules: Sequence[str] = (), *, training: bool = False) -> None:
        super().__init__()
        self.set_global(configure(training))
        self.float_modules = tuple(float_modules)
        self.set_filter_function(lambda node: not is_inside(node, self.float_modules))

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the graph's values, clamped operations first."""
        check_modules(model, self.float_modules)
        for node in model.graph.nodes:
            if node.target in CLAMPS:
                annotate_clamped(node, self.global_config, self.filter_fn)
        return super().annotate(model)  # type: ignore[no-any-return]


def configure(training: bool) -> QuantizationConfig:
    """XNNPACK's configuration, with scales down to what torch's fused fake quantiser can have too.

    With the least scale at its default of 2**-12, training would see finer activations than are deployed, and the
    weights of a RED block's gate, which start that small, would be coarse. Weights are given a fake quantiser that
    forgets at once what they were; the fused one is not symmetric for a channel whose weights have one sign.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=training)
    activation = _with_options(config.input_activation, eps=SMALLEST_SCALE)
    weight = _with_options(config.weight, eps=SMALLEST_SCALE)
    if training:
        observer = MovingAveragePerChannelMinMaxObserver
        made = FakeQuantize.with_args(observer=observer, averaging_constant=1.0, eps=SMALLEST_SCALE)
        weight = replace(weight, observer_or_fake_quant_ctr=made)
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)


def _with_options(spec: QuantizationSpec, **options: float) -> QuantizationSpec:
    made = spec.observer_or_fake_quant_ctr.p  # a partial, which PT2E does not want nested
    return replace(spec, observer_or_fake_quant_ctr=made.func.with_args(**{**made.keywords, **options}))


def annotate_clamped(clamp: Node, config: QuantizationConfig, chosen: Callable[[Node], bool]) -> None:
    """Quantise the inputs of the operation before a clamp and the clamp's result, and nothing between."""
    source = clamp.all_input_nodes[0]
    readers = [user for user in source.users if user.op != "output"]
    if source.target not in FOLDABLE or readers != [clamp] or not chosen(source):
        return
    specs = (config.input_activation, config.weight, config.bias)
    inputs: dict[Any, Any] = dict(zip(source.all_input_nodes, specs, strict=False))
    source.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)
    clamp.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=config.output_activation, _annotated=True)
    for parameter in source.all_input_nodes[1:]:
        parameter.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())._annotated = True


def is_inside(node: Node, modules: Iterable[str]) -> bool:
    """Whether the node belongs to one of the modules."""
    return any(path == m or path.startswith(f"{m}.") for path in module_paths(node) for m in modules)


def check_modules(model: GraphModule, modules: Sequence[str]) -> None:
    """Raise if a module that shall stay in floating point is not in the graph."""
    known = {path for node in model.graph.nodes for path in module_paths(node)}
    for name in modules:
        if name not in known:
            raise QuantizationError(f"there is no module {name!r} to be left in floating point; see named_modules()")


def module_paths(node: Node) -> list[str]:
    """Paths of the modules around a node, outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
