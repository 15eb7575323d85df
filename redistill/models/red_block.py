"""The residual-encoder (RED) block: what stands at a tap, in training and in the deployed student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from redistill.tracing.skeleton import build_graph_module
from redistill.tracing.tracer import trace_graph

INITS = ("gentle", "default", "light")

_LAYERS: dict[int, tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], type[_BatchNorm]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}


class REDBlock(nn.Module):
    """y = x * sigmoid(BN(conv1x1(x))) + ReLU6(BN(conv3x3(x))), shape (B, C, H, W) kept (ReDistill, section 3.2).

    On a grid of ``dims`` axes, 1 to 3: (B, C, L), (B, C, H, W) or (B, C, D, H, W).

    ``init="gentle"`` opens the gate (sigmoid of 4) and quietens the residual, so that y is close to x and features
    inherited from the teacher survive; ``"default"`` is the paper's, PyTorch's own initialisation; ``"light"`` is a
    cheaper block with a gentle start: one gate for all channels and a depthwise residual, 13 C + 3 parameters where
    the others need 10 C^2 + 6 C. With a ``generator`` torch's own is not drawn from.
    """

    def __init__(
        self,
        channels: int,
        gate_kernel: int = 1,
        residual_kernel: int = 3,
        init: str = "gentle",
        device: torch.device | None = None,
        dims: int = 2,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        conv, norm = _LAYERS[dims]
        kind: dict[str, Any] = {"device": "meta" if generator else device, "dtype": dtype}
        self.channels, self.dims = channels, dims
        gates, groups = (1, channels) if init == "light" else (channels, 1)
        self.gate_conv = conv(channels, gates, gate_kernel, padding=gate_kernel // 2, **kind)
        self.gate_norm = norm(gates, **kind)
        self.residual_conv = conv(
            channels, channels, residual_kernel, padding=residual_kernel // 2, groups=groups, **kind
        )
        self.residual_norm = norm(channels, **kind)
        self.activation = nn.ReLU6(inplace=True)
        if generator is not None:
            self.to_empty(device=device or torch.device("cpu"))
            self._draw(generator)
        if init != "default":
            self._start_near_identity()

    def _draw(self, generator: torch.Generator) -> None:
        """PyTorch's own initialisation, from a generator of one's own."""
        for norm in (self.gate_norm, self.residual_norm):
            norm.reset_parameters()
        for conv in (self.gate_conv, self.residual_conv):
            nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(conv.weight[0].numel())
            assert conv.bias is not None
            nn.init.uniform_(conv.bias, -bound, bound, generator=generator)

    def _start_near_identity(self) -> None:
        nn.init.constant_(self.gate_norm.weight, 0.1)
        nn.init.constant_(self.gate_norm.bias, 4.0)
        nn.init.constant_(self.residual_norm.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate first, residual second: never more than three maps alive."""
        gated = x * torch.sigmoid(self.gate_norm(self.gate_conv(x)))
        gated += self.activation(self.residual_norm(self.residual_conv(x)))
        return gated


def trace_block(block: REDBlock) -> GraphModule:
    """The block as a graph, to be laid into a student's graph."""
    inputs = (torch.empty(1, block.channels, *[8] * block.dims, dtype=block.gate_conv.weight.dtype),)
    graph, _, skeleton = trace_graph(block, inputs)
    return build_graph_module(block, graph, skeleton)
