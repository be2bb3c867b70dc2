"""The linear layer with a weight of 8 or 4 bits, for inference."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk
from fusionkit.frameworks.paddle import from_numpy
from fusionkit.quantized_arrays import QuantizedArrays
from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array


class QuantizedLinear(paddle.nn.Layer):  # type: ignore[misc]
    """y = x @ weight + bias, in float32, rounded once to x's dtype. It can be traced and exported.

    Args:
        weight: [in_features, out_features]. Its `activations` say whether x is rounded to int8 first.
        bias: [out_features], float32 / bfloat16 / float16, or None.

    Buffers: codes, scales and, with minimums, minimums, as of `fusionkit.quantized_arrays.QuantizedArrays`; bias.
    """

    def __init__(self, weight: QuantizedWeight, bias: Array | None = None) -> None:
        super().__init__()
        arrays = QuantizedArrays.of(weight)
        self.dtype, self.in_features, self.group_size = arrays.dtype, arrays.in_features, arrays.group_size
        self.activations = arrays.activations
        for name in ("codes", "scales", "minimums"):
            array = getattr(arrays, name)
            self.register_buffer(name, None if array is None else from_numpy(array, "cpu"))
        self.register_buffer("bias", None if bias is None else from_numpy(bias, "cpu"))

    @property
    def weight(self) -> QuantizedArrays:
        arrays = self.codes, self.scales, self.minimums
        return QuantizedArrays(*arrays, self.dtype, self.in_features, self.group_size, self.activations)

    def forward(self, x: Any) -> Any:
        """[..., out_features], dtype of x."""
        return fk.fused_linear(x, self.weight, self.bias)
