"""fusion_rope on PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch
from fusionkit_backends.gpu.autograd.rows import require_shape
from fusionkit_backends.gpu.autograd.values import require_values
from fusionkit_backends.gpu.kernels import rope as kernels


def _rotated(
    q: torch.Tensor, k: torch.Tensor, tables: tuple[Any, ...], interleaved: bool, sign: int
) -> tuple[torch.Tensor, torch.Tensor]:
    new_q, new_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    kernels.rotate(q, k, *tables, interleaved, new_q, new_k, sign)
    return new_q, new_k


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, cos: Any, sin: Any, position_ids: Any, interleaved: bool) -> Any:
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.interleaved = interleaved
        return _rotated(q, k, (cos, sin, position_ids), interleaved, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dq: Any, dk: Any) -> Any:
        return (*_rotated(dq, dk, ctx.saved_tensors, ctx.interleaved, -1), None, None, None, None)


def fusion_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch_size, seq_len, _, head_dim = q.shape
    require_shape(k, (batch_size, seq_len, k.shape[2], head_dim), "k")
    require_shape(cos, (cos.shape[0], head_dim // 2), "cos")
    require_shape(sin, cos.shape, "sin")
    if head_dim % 2 or head_dim == 0 or (position_ids is None and seq_len > cos.shape[0]):
        raise ValueError("head_dim must be even, and each token must have a row in cos")
    if position_ids is not None:
        require_shape(position_ids, (batch_size, seq_len), "position_ids")
        require_values("fusion_rope", "position_ids", position_ids, cos.shape[0])
    return _Rope.apply(q, k, cos, sin, position_ids, interleaved)
