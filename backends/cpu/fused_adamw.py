"""fused_adamw on the CPU. Parameter and moments are written where they are."""

from __future__ import annotations

import math
from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime

from fusionkit.errors import argument_error
from fusionkit.ops.fused_adamw import check_scalars


def coefficients(
    learning_rate: float,
    beta1_power: float,
    beta2_power: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: float = 1.0,
) -> tuple[float, ...]:
    """What the kernel multiplies by, taken in float64: 1 - float32(0.999) would be 3e-5 off."""
    check_scalars(locals())
    return (
        grad_scale,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / math.sqrt(1 - beta2_power),
        epsilon,
        1 - learning_rate * weight_decay,
        learning_rate / (1 - beta1_power),
    )


def through_paddle(
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
    import paddle

    factors = coefficients(learning_rate, beta1_power, beta2_power, beta1, beta2, epsilon, weight_decay, grad_scale)
    if not paddle.in_dynamic_mode():
        return tuple(paddle_ops.run("fusionkit_fused_adamw", param, grad, moment1, moment2, *factors))
    for name, tensor in (("param", param), ("moment1", moment1), ("moment2", moment2)):
        # Paddle would make a contiguous copy, and the update would be written there.
        if not tensor.is_contiguous():
            rule, advice = "contiguous, because it is updated in place", "Keep parameters and moments contiguous"
            raise argument_error("fused_adamw", name, rule, f"strides {tensor.strides}", advice=advice)
    with paddle.no_grad():
        tensors = paddle_ops.inputs(param, grad, moment1, moment2)
    paddle_ops.run("fusionkit_fused_adamw", *tensors, *factors)
    return param, moment1, moment2


def through_numpy(
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
    factors = coefficients(learning_rate, beta1_power, beta2_power, beta1, beta2, epsilon, weight_decay, grad_scale)
    runtime.native().adamw(param, grad, moment1, moment2, *factors)
    return param, moment1, moment2
