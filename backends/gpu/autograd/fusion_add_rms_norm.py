"""fusion_add_rms_norm on PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd import normalised
from fusionkit_backends.gpu.autograd.rows import require_shape


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        y, total, rstd = normalised.forward(x, residual, weight, epsilon)
        ctx.save_for_backward(total, weight, rstd)
        ctx.dtypes = x.dtype, residual.dtype
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor | None, dtotal: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight, rstd = ctx.saved_tensors
        if dy is None:  # only the sum was used
            dy = torch.zeros(total.shape, dtype=ctx.dtypes[0], device=total.device)
        dx, dresidual, dweight = normalised.backward(
            dy, total, dtotal, weight, rstd, ctx.dtypes, wants_weight=ctx.needs_input_grad[2]
        )
        return dx, dresidual, dweight, None


def fusion_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, epsilon: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    require_shape(residual, x.shape, "residual")
    require_shape(weight, x.shape[-1:], "weight")
    return _AddRmsNorm.apply(x, residual, weight, epsilon)
