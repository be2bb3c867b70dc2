"""fused_linear on PyTorch tensors: cuBLAS, which adds the bias in the product's epilogue. No kernel of ours."""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd.products import product, product_and_bias
from fusionkit_backends.gpu.autograd.rows import as_rows, require_shape


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        rows, operand = as_rows(x), weight.to(x.dtype)
        y = product(rows, operand, x.dtype) if bias is None else product_and_bias(rows, operand, bias)
        return y.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = as_rows(dy)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = product(rows, weight.to(x.dtype).t(), x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            dweight = product(as_rows(x).t(), rows, weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return dx, dweight, dbias


def fused_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    require_shape(weight, (x.shape[-1], weight.shape[-1]), "weight")
    if bias is not None:
        require_shape(bias, weight.shape[1:], "bias")
    return _Linear.apply(x, weight, bias)
