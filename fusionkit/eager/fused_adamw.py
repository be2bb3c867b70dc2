"""fused_adamw composed of Paddle's own ops."""

from __future__ import annotations

import math
from typing import Any

import paddle

from fusionkit.eager.shapes import require_shape
from fusionkit.ops.fused_adamw import check_scalars


@paddle.no_grad()  # type: ignore[untyped-decorator]
def fused_adamw(
    param: Any,
    grad: Any,
    moment1: Any,
    moment2: Any,
    *,
    learning_rate: float,
    beta1_power: float,
    beta2_power: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: float = 1.0,
) -> Any:
    check_scalars(locals())
    for name, tensor in (("grad", grad), ("moment1", moment1), ("moment2", moment2)):
        require_shape("fused_adamw", name, tensor, param.shape)
    scaled = grad.astype(paddle.float32) * grad_scale
    first = moment1 * beta1 + scaled * (1 - beta1)
    second = moment2 * beta2 + scaled * (1 - beta2) * scaled  # the square alone may leave float32
    denominator = second.sqrt() * (1 / math.sqrt(1 - beta2_power)) + epsilon
    updated = param * (1 - learning_rate * weight_decay) - first / denominator * (learning_rate / (1 - beta1_power))
    for tensor, value in ((param, updated), (moment1, first), (moment2, second)):
        paddle.assign(value, tensor)
    return param, moment1, moment2
