"""Teachers: where a model spec becomes a module, with its weights and an example input."""

from redistill.models.inputs import default_input_shapes, example_inputs, parse_shape
from redistill.models.loading import find_weights, load_model
from redistill.models.specs import ModelSpec, parse_spec
from redistill.models.unet import DDPMUNet

__all__ = [
    "DDPMUNet",
    "ModelSpec",
    "default_input_shapes",
    "example_inputs",
    "find_weights",
    "load_model",
    "parse_shape",
    "parse_spec",
]
