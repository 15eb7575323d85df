"""Small ``.tflite`` files written by hand, as the converter writes them."""

from __future__ import annotations

import copy

import numpy as np

from redistill.export.tflite_file import IDENTIFIER

SCALE, ZERO = 0.1, -3


class Writer:
    """Builds a file of int8 operations on one input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        self.schema = schema
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [self.graph], []
        self.model.buffers = [schema.BufferT()]
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs = [self.tensor(shape)]

    def tensor(self, shape: tuple[int, ...], values: np.ndarray | None = None, kind: int = 9) -> int:
        """A tensor of int8 (or of int32, kind 2); with values a constant."""
        made = self.schema.TensorT()
        made.name, made.shape, made.type = f"t{len(self.graph.tensors)}", list(shape), kind
        made.quantization = self.schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [SCALE], [ZERO if values is None else 0]
        if values is not None:
            buffer = self.schema.BufferT()
            buffer.data = values.reshape(-1).view(np.uint8)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def numbers(self, values: list) -> int:
        """A constant of whole numbers."""
        found = np.array(values, np.int32)
        return self.tensor(found.shape, found, 2)

    def operation(self, name: str, inputs: list[int], shape: tuple[int, ...], options: object = None) -> int:
        """Append an operation; returns its result."""
        code, made = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = code.builtinCode
        code.version = 2
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes), inputs, [self.tensor(shape)]
        self.graph.tensors[made.outputs[0]].quantization = copy.copy(self.graph.tensors[inputs[0]].quantization)
        kinds = {"CONV_2D": "Conv2DOptions", "PAD": "PadOptions", "SLICE": "SliceOptions"}
        kinds["TRANSPOSE"] = "TransposeOptions"
        made.builtinOptions = options or getattr(self.schema, f"{kinds[name]}T")()
        made.builtinOptionsType = getattr(self.schema.BuiltinOptions, kinds[name])
        self.model.operatorCodes.append(code)
        self.graph.operators.append(made)
        return made.outputs[0]

    def slice(self, source: int, begin: list[int], shape: tuple[int, ...]) -> int:
        """A part of a map."""
        return self.operation("SLICE", [source, self.numbers(begin), self.numbers(list(shape))], shape)

    def pad(self, source: int, amounts: list[list[int]]) -> int:
        """Zeros around a map."""
        shape = self.graph.tensors[source].shape
        padded = tuple(n + before + after for n, (before, after) in zip(shape, amounts, strict=True))
        return self.operation("PAD", [source, self.numbers(amounts)], padded)

    def transpose(self, source: int, order: list[int]) -> int:
        """A map with its axes in another order."""
        shape = self.graph.tensors[source].shape
        return self.operation("TRANSPOSE", [source, self.numbers(order)], tuple(shape[axis] for axis in order))

    def convolution(self, source: int, channels: int, kernel: int, stride: int) -> int:
        """A convolution without padding."""
        _, height, width, depth = self.graph.tensors[source].shape
        values = np.random.default_rng(0).integers(-127, 128, (channels, kernel, kernel, depth)).astype(np.int8)
        options = self.schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = 1, stride, stride
        options.dilationHFactor = options.dilationWFactor = 1
        bias = np.arange(channels, dtype=np.int32) * 50
        inputs = [source, self.tensor(values.shape, values), self.tensor(bias.shape, bias, 2)]
        shape = (1, (height - kernel) // stride + 1, (width - kernel) // stride + 1, channels)
        made = self.operation("CONV_2D", inputs, shape, options)
        spread = 90 * (kernel * kernel * depth) ** 0.5  # of random values and weights, as steps of the result
        scale = self.graph.tensors[source].quantization.scale[0] * SCALE * spread
        self.graph.tensors[made].quantization.scale = [scale]
        return made

    def finish(self, *outputs: int) -> bytes:
        """The file."""
        import flatbuffers

        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())
