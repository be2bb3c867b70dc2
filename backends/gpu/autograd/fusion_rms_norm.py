"""fusion_rms_norm on PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd import normalised
from fusionkit_backends.gpu.autograd.rows import require_shape


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        y, _, rstd = normalised.forward(x, None, weight, epsilon)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        dx, _, dweight = normalised.backward(
            dy, x, None, weight, rstd, (x.dtype, None), wants_weight=ctx.needs_input_grad[1]
        )
        return dx, dweight, None


def fusion_rms_norm(x: torch.Tensor, weight: torch.Tensor, *, epsilon: float = 1e-5) -> torch.Tensor:
    require_shape(weight, x.shape[-1:], "weight")
    return _RmsNorm.apply(x, weight, epsilon)
