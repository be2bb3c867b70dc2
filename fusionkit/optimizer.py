"""Paddle's AdamW with each update in one pass over memory. No device is named."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import paddle

import fusionkit as fk


class AdamW(paddle.optimizer.AdamW):  # type: ignore[misc]
    """`paddle.optimizer.AdamW` on `fusionkit.fused_adamw`: same constructor, state and names in checkpoints.

    Float32 parameters go through the op; what it does not cover (16-bit parameters, sparse gradients, amsgrad, static
    programs) goes Paddle's way.
    """

    _grad_scale = 1.0

    def step(self, grad_scale: float = 1.0) -> None:
        """Update every parameter, with its gradient times `grad_scale`; the gradients themselves stay as they are."""
        self._grad_scale = grad_scale
        super().step()

    def _append_optimize_op(self, block: Any, param_and_grad: Any) -> Any:
        if isinstance(param_and_grad, dict):
            param_and_grad = self._update_param_group(param_and_grad)
        param, grad = param_and_grad
        if not self._fits(param, grad):
            scaled = grad if self._grad_scale == 1.0 else grad.scale(self._grad_scale)
            return super()._append_optimize_op(block, (param, scaled))
        powers = [self._state(name, param) for name in (self._beta1_pow_acc_str, self._beta2_pow_acc_str)]
        decays = self._apply_decay_param_fun is None or self._apply_decay_param_fun(param.name)
        fk.fused_adamw(
            param,
            grad,
            self._state(self._moment1_acc_str, param),
            self._state(self._moment2_acc_str, param),
            learning_rate=self._create_param_lr(param_and_grad).item(),
            beta1_power=powers[0].item(),
            beta2_power=powers[1].item(),
            beta1=self._beta1,
            beta2=self._beta2,
            epsilon=self._epsilon,
            weight_decay=self._weight_decay if decays else 0.0,
            grad_scale=self._grad_scale,
        )
        for power, beta in zip(powers, (self._beta1, self._beta2), strict=True):
            power.scale_(beta)
        return None

    def _state(self, name: str, param: Any) -> Any:
        return self._get_accumulator_master(name, param)

    def _fits(self, param: Any, grad: Any) -> bool:
        if not paddle.in_dynamic_mode() or self._amsgrad or self._lazy_mode or self._lr_ratio or not grad.is_dense():
            return False
        numbers = (self._beta1, self._beta2, self._epsilon, self._weight_decay)
        return param.dtype == paddle.float32 and all(isinstance(number, float | int) for number in numbers)


@paddle.no_grad()  # type: ignore[untyped-decorator]
def global_norm(tensors: Iterable[Any]) -> float:
    """The root of the sum of all squares. Each tensor is read once; Paddle's x * x would write it first."""
    return math.sqrt(sum(paddle._C_ops.squared_l2_norm(tensor).item() for tensor in tensors))
