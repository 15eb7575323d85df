"""TensorFlow Lite: a file for microcontrollers, run in the interpreter that runs there, which tells its arena.

Converted by litert-torch; int8 by ai-edge-quantizer, from the float file and calibration data. Images go in channels
last, [B, H, W, C], as cameras give them. A quantised file can come out with its weights outside of it, and the
interpreter then computes zeros without an error: no arena is reported before outputs have been compared.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redistill.errors import ExportError
from redistill.export.microcontroller import count_outputs, open_interpreter
from redistill.export.preparation import PreparedModel
from redistill.internal.reasons import reason
from redistill.internal.silence import quietly, standard_error


def build(prepared: PreparedModel) -> bytes:
    """Convert, and round to int8 where there is calibration data.

    Raises:
        ExportError: an operation that the converter does not know.
    """
    data = _convert(prepared.graph_module, prepared.inputs)
    return _quantize(data, prepared.calibration) if prepared.calibration else data


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


def _convert(graph_module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    with _unheard(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        maps = [i for i, x in enumerate(inputs) if x.dim() == 4]
        last = litert_torch.to_channel_last_io(graph_module, args=maps).eval()
        try:
            model = litert_torch.convert(last, tuple(map(_channels_last, inputs)))
        except Exception as error:
            raise ExportError(f"TensorFlow Lite cannot hold this network: {reason(error, 200)}") from error
        path = Path(folder) / "model.tflite"
        model.export(str(path))
        return path.read_bytes()


def _quantize(data: bytes, calibration: Sequence[Tensor]) -> bytes:
    """Int8 weights and activations; ranges are the widest met, since a moving average would clip the largest values."""
    with _unheard():
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe
        from ai_edge_quantizer.calibrator import Calibrator
        from ai_edge_quantizer.recipe_manager import RecipeManager
        from ai_edge_quantizer.utils.qsv_utils import min_max_update

        ((key, signature),) = Interpreter(model_content=data).get_signature_list().items()
        samples = [{signature["inputs"][0]: _channels_last(x).numpy()} for x in calibration]
        rules = RecipeManager()
        rules.load_quantization_recipe(recipe.static_wi8_ai8())
        observed = Calibrator(bytearray(data), num_threads=1, qsv_update_func=min_max_update)
        observed.calibrate({key: samples}, rules)
        rounding = quantizer.Quantizer(bytearray(data), rules.get_quantization_recipe())
        found = rounding.quantize(observed.get_model_qsvs()).quantized_model
    if found is None:
        raise ExportError("ai-edge-quantizer gave no int8 model; export float, or int8 by --format executorch")
    return bytes(found)


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
