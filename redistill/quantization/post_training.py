"""Post-training quantisation: observe a few batches, then round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.errors import QuantizationError
from redistill.internal.text import format_shape
from redistill.quantization.backend import require_backend
from redistill.quantization.conversion import convert
from redistill.quantization.lowering import Inputs, lower_to_aten


def quantize(
    model: nn.Module,
    calibration: Iterable[Tensor | Inputs],
    example: Tensor | Inputs,
    float_modules: Sequence[str] = (),
) -> GraphModule:
    """The int8 network of a trained one.

    Args:
        model: the network; it is not changed.
        calibration: batches of inputs from which the ranges of activations are taken: some hundred images of the
            training set, never of the test set. A model of several inputs is given tuples.
        example: an example input, batch first, [1, C, H, W] for images; fixes every size but the batch's.
        float_modules: paths of modules that stay in floating point.

    Returns:
        A graph of quantise and dequantise operations around ATen ones, on the CPU: it runs, ``torch.export`` exports
        it, and ExecuTorch's XNNPACK partitioner lowers it to int8 kernels.

    Raises:
        QuantizationError: a missing package, a model that cannot be exported, no calibration data or data of another
            shape than the example, a module that is not there.
    """
    require_backend()
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    from redistill.quantization.quantizer import Int8Quantizer

    inputs = as_inputs(example)
    prepared = prepare_pt2e(lower_to_aten(model, inputs), Int8Quantizer(float_modules))
    calibrate(prepared, calibration, inputs)
    return convert(prepared)


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Tensor | Inputs], example: Inputs) -> int:
    """Show batches to the observers; returns how many there were."""
    seen = 0
    for batch in batches:
        inputs = as_inputs(batch)
        check_shapes(inputs, example)
        prepared(*(x.cpu() for x in inputs))
        seen += 1
    if not seen:
        raise QuantizationError("calibration: there is no batch to calibrate on; give some hundred training images")
    return seen


def check_shapes(inputs: Inputs, example: Inputs) -> None:
    """Raise unless the inputs are like the example but for the batch size."""
    found, wanted = (", ".join(map(_describe, given)) for given in (inputs, example))
    if found != wanted:
        raise QuantizationError(f"calibration: the data is {found}, and the model's input {wanted}; make it the same")


def _describe(x: Tensor) -> str:
    return f"Nx{format_shape(x.shape[1:])} {str(x.dtype).removeprefix('torch.')}"


def as_inputs(given: Tensor | Inputs) -> Inputs:
    """A tuple of tensors, of which one may come alone."""
    return (given,) if isinstance(given, Tensor) else tuple(given)
