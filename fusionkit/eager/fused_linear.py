"""fused_linear composed of Paddle's own ops."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.nn import functional as F

from fusionkit.eager.precision import compute_dtype, rounded_to
from fusionkit.eager.shapes import require_shape
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.frameworks.paddle import from_numpy
from fusionkit.packed_weight import PackedWeight
from fusionkit.spec import Array


def fused_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Parameters of another dtype than x are computed with in float32, so that their gradients are float32 too."""
    packed = isinstance(weight, PackedWeight)
    if packed:
        weight = weight.payload_for("eager")
    require_shape("fused_linear", "weight", weight, [x.shape[-1], weight.shape[-1]])
    if bias is not None:
        require_shape("fused_linear", "bias", bias, weight.shape[-1:])
    parameters = [weight] if bias is None else [weight, bias]
    mixed = any(parameter.dtype != x.dtype for parameter in parameters)
    dtype = paddle.float32 if mixed else compute_dtype(x)
    operand = weight if packed or weight.dtype != paddle.float32 else rounded_to(x.dtype, weight)
    y = F.linear(x.astype(dtype), operand.astype(dtype), None if bias is None else bias.astype(dtype))
    return y.astype(x.dtype)


def pack(weight: Array, dtype: str, device: str) -> Any:
    """The weight itself, rounded: Paddle has no layout of its own for the product."""
    return from_numpy(weight.astype(DTYPES[dtype]), device)
