"""The optional packages behind int8, asked for in one place."""

from __future__ import annotations

import importlib

from redistill.errors import QuantizationError
from redistill.internal.silence import quietly


def require_backend() -> None:
    """Raise in one line where executorch or torchao is missing."""
    with quietly():
        try:
            importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
            importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        except ImportError as error:
            missing = error.name.partition(".")[0] if error.name else str(error)
            raise QuantizationError(
                f"int8 needs executorch and torchao ({missing} cannot be imported); pip install 'redistill[export]'"
            ) from None
