"""TensorFlow Lite: a file for microcontrollers, run in the interpreter that runs there, which tells its arena.

Converted by litert-torch, int8 networks with the scales that they have. Images go in channels last, [B, H, W, C], as
cameras give them. A file can come out with its weights outside of it, and the interpreter then computes zeros without
an error: no arena is reported before outputs have been compared.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.errors import ExportError
from redistill.export.microcontroller import count_outputs, open_interpreter
from redistill.export.preparation import PreparedModel
from redistill.export.tflite_layout import lay_out
from redistill.export.tflite_passes import slim
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly, standard_error
from redistill.quantization.conversion import DEQUANTIZE_CHANNELS, is_operation


def build(prepared: PreparedModel) -> bytes:
    """Convert the network; an int8 one keeps its scales.

    Raises:
        ExportError: an operation that the converter does not know.
    """
    if prepared.int8 is None:
        return _convert(prepared.graph_module, prepared.inputs)
    with _unheard():
        options = _keep_scales()
    return _convert(_with_float_weights(prepared.int8), prepared.inputs, options)


def run(data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the file in the interpreter for microcontrollers; int8 inputs and outputs are rounded and scaled here."""
    with standard_error() as said:
        try:
            interpreter = open_interpreter(data)
            for slot, x in enumerate(inputs):
                interpreter.set_input(_encode(_channels_last(x).numpy(), interpreter.get_input_details(slot)), slot)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            why = " ".join((said() or str(error)).split())[:200]
            raise ExportError(f"TensorFlow Lite Micro cannot run this network: {why}") from error
    outputs = range(count_outputs(data))
    return [torch.from_numpy(_decode(interpreter.get_output(i), interpreter.get_output_details(i))) for i in outputs]


def _with_float_weights(int8: GraphModule) -> GraphModule:
    """A copy of an int8 network whose weights are floats that are quantised first, as the converter wants them."""
    network = copy.deepcopy(int8)
    for node in network.graph.nodes:
        stored = node.all_input_nodes[0] if is_operation(node, DEQUANTIZE_CHANNELS) else None
        if stored is None or stored.op != "get_attr":
            continue
        settings = node.args[1:]
        values = node.target(*torch.fx.node.map_arg(node.args, lambda n: getattr(network, str(n.target))))
        network.register_buffer(f"float_{node.name}", values)
        with network.graph.inserting_before(node):
            exact = network.graph.get_attr(f"float_{node.name}")
            quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
            node.replace_input_with(stored, network.graph.call_function(quantize, (exact, *settings)))
    network.recompile()
    return network


def _keep_scales() -> dict[str, Any]:
    """What tells the converter to make integer operations of those between quantise and dequantise ones."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    static = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    return {"quant_config": QuantConfig(pt2e_quantizer=static)}


def _convert(network: nn.Module, inputs: Sequence[Tensor], options: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    with _unheard(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        maps = [i for i, x in enumerate(inputs) if x.dim() == 4]
        last = litert_torch.to_channel_last_io(network, args=maps).eval()
        try:
            model = litert_torch.convert(last, tuple(map(_channels_last, inputs)), **options)
        except Exception as error:
            raise ExportError(f"TensorFlow Lite cannot hold this network: {reason(error, 200)}") from error
        path = Path(folder) / "model.tflite"
        model.export(str(path))
        return lay_out(slim(path.read_bytes()))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Converter and quantiser report each of their steps by every way there is."""
    with quietly(), contextlib.redirect_stdout(io.StringIO()), standard_error():
        yield


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x


def _encode(values: Any, about: dict[str, Any]) -> Any:
    """Float values in the type of an input."""
    if about["dtype"] != np.int8:
        return values.astype(about["dtype"])
    scale, zero = (about["quantization_parameters"][key][0] for key in ("scales", "zero_points"))
    return np.clip(np.round(values / scale + zero), -128, 127).astype(np.int8)


def _decode(values: Any, about: dict[str, Any]) -> Any:
    """An output as float values."""
    if about["dtype"] != np.int8:
        return values.copy()
    scale, zero = (about["quantization_parameters"][key][0] for key in ("scales", "zero_points"))
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)
