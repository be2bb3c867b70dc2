"""swiglu on PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd.rows import as_long_rows, require_shape
from fusionkit_backends.gpu.kernels import swiglu as kernels


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate, memory_format=torch.contiguous_format)
        kernels.forward(*as_long_rows(gate, up, y))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (gate, up))
        kernels.backward(*as_long_rows(dy, gate, up, dgate, dup))
        return dgate, dup


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    require_shape(up, gate.shape, "up")
    return _Swiglu.apply(gate, up)
