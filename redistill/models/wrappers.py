"""diffusers models that return their tensor: the output dataclass is unpacked, the model itself is left as it is.

In each wrapper the diffusers model is the submodule ``model``, so its weights are found under ``model.``.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn


class AutoencoderOutput(nn.Module):
    """A model of one image: (B, C, H, W) to its reconstruction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor) -> Tensor:
        """Return the model's ``sample`` as a tensor."""
        out: Tensor = self.model(sample, return_dict=False)[0]
        return out


class DenoiserOutput(nn.Module):
    """An unconditional denoiser: sample (B, C, H, W) and timestep (B,) to the prediction (B, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the model's ``sample`` as a tensor."""
        out: Tensor = self.model(sample, timestep, return_dict=False)[0]
        return out


class ConditionalDenoiserOutput(nn.Module):
    """A denoiser with cross-attention: its third input is the text states (B, tokens, channels)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Return the model's ``sample`` as a tensor."""
        out: Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


_WRAPPERS: dict[tuple[str, ...], type[AutoencoderOutput | DenoiserOutput | ConditionalDenoiserOutput]] = {
    ("sample",): AutoencoderOutput,
    ("sample", "timestep"): DenoiserOutput,
    ("sample", "timestep", "encoder_hidden_states"): ConditionalDenoiserOutput,
}


def wrap_diffusers(model: nn.Module) -> nn.Module:
    """Wrap a diffusers model by the inputs that its forward requires; one that takes others is left as it is."""
    parameters = inspect.signature(model.forward).parameters.values()
    required = tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
    wrapper = _WRAPPERS.get(required)
    return model if wrapper is None else wrapper(model)
