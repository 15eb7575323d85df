"""Quantisation-aware training: a network that computes as its int8 self will, with gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill.quantization.backend import require_backend
from redistill.quantization.conversion import convert
from redistill.quantization.lowering import Inputs, lower_to_aten
from redistill.quantization.post_training import as_inputs, calibrate

Maps = dict[str, Tensor]


class FakeQuantized(nn.Module):
    """A copy of a network in which weights and activations are rounded to int8's grid on their way (Jacob et al. 2018).

    It is the deployed network in all but the type: batch norms are folded with their running statistics, which stay,
    and dropout is off, so training and evaluation compute the same. Gradients pass the rounding unchanged where it does
    not clip. Parameters keep their names, under ``network.``.

    The range of each activation follows a moving average while training, and stands still from the forward pass
    ``freeze_after`` on; that of each weight is always the weight's own.

    Args:
        model: a trained network, or ``student.tapped()``, whose forward gives ``(output, {name: map})``; not changed.
        calibration: batches that give the first ranges, as for :func:`~redistill.quantization.quantize`.
        example: an example input, batch first.
        float_modules: paths of modules that stay in floating point.
        freeze_after: the forward pass in training mode, counted from 1, at which ranges are frozen; never by default.

    Raises:
        QuantizationError: as ``quantize`` does.
    """

    passes: Tensor

    def __init__(
        self,
        model: nn.Module,
        calibration: Iterable[Tensor | Inputs],
        example: Tensor | Inputs,
        float_modules: Sequence[str] = (),
        freeze_after: int | None = None,
    ) -> None:
        super().__init__()
        require_backend()
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        from redistill.quantization.quantizer import Int8Quantizer

        self.example, self.freeze_after = as_inputs(example), freeze_after
        prepared = prepare_qat_pt2e(lower_to_aten(model, self.example), Int8Quantizer(float_modules, training=True))
        self.network = GraphModule(prepared, prepared.graph, "FakeQuantized")  # one that train() may be called on
        self.network.meta = prepared.meta
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        calibrate(self.network, calibration, self.example)
        self.train()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output alone."""
        found = self.tapped(*inputs)
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output

    def tapped(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Maps]:
        """What the model gives, maps included."""
        if self.training:
            self.passes += 1
            if self.passes == self.freeze_after:
                self._observe(False)
        found: Tensor | tuple[Tensor, Maps] = self.network(*inputs)
        return found

    def train(self, mode: bool = True) -> FakeQuantized:
        """Ranges are observed in training mode alone, so that no validation image touches them."""
        super().train(mode)
        self._observe(mode and (self.freeze_after is None or bool(self.passes < self.freeze_after)))
        return self

    def convert(self) -> GraphModule:
        """The int8 network, as ``quantize`` returns it, without maps; this one can be trained on."""
        network = copy.deepcopy(self).cpu().eval().network
        output = network.graph.output_node()
        if isinstance(output.args[0], tuple):
            output.args = (output.args[0][0],)
            network.graph.eliminate_dead_code()
            network.recompile()
        with torch.no_grad():
            network(*self.example)  # the weights' own ranges, of the weights as they are now
        for module in fake_quantizers(network):
            module.calculate_qparams = partial(_trained_scale, module)  # the observer's would round otherwise
        return convert(network)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and batch-norm statistics by the names they have in the model, for its ``load_state_dict``."""
        kept = {name for name, _ in self.network.named_parameters()}
        kept |= {name for name, _ in self.network.named_buffers() if name.endswith(("running_mean", "running_var"))}
        return {name: value.detach().cpu() for name, value in self.network.state_dict().items() if name in kept}

    def _observe(self, enabled: bool) -> None:
        """Let ranges of activations move, or not."""
        for module in fake_quantizers(self.network):
            if not module.is_per_channel:
                module.enable_observer(enabled)


def _trained_scale(module: Any) -> tuple[Tensor, Tensor]:
    return module.scale, module.zero_point


def fake_quantizers(network: nn.Module) -> Iterator[Any]:
    """The modules that round."""
    return (module for module in network.modules() if hasattr(module, "fake_quant_enabled"))
