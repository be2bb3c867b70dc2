"""What fusion_rms_norm and fusion_add_rms_norm share: the kernels over tensors of any shape."""

from __future__ import annotations

import torch
from fusionkit_backends.gpu.autograd.rows import as_rows
from fusionkit_backends.gpu.kernels import rms_norm, rms_norm_gradient


def forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """y, x + residual (None without one) and rstd [rows]."""
    rows = as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    rstd = torch.empty(rows.shape[0], dtype=torch.float64, device=x.device)
    if rows.shape[1] == 0:  # no program holds a row without columns
        return y, total, rstd
    residual_rows, total_rows = (None if t is None else as_rows(t) for t in (residual, total))
    rms_norm.forward(rows, residual_rows, weight, epsilon, as_rows(y), total_rows, rstd)
    return y, total, rstd


def backward(
    dy: torch.Tensor,
    total: torch.Tensor,
    dtotal: torch.Tensor | None,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    wants_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of x and residual, in these dtypes, and of weight; one tensor for both where the dtypes agree."""
    rows = as_rows(dy)
    dx = torch.empty(dy.shape, dtype=dtypes[0], device=dy.device)
    other = dtypes[1] is not None and dtypes[1] is not dtypes[0]
    dresidual = torch.empty(dy.shape, dtype=dtypes[1], device=dy.device) if other else None
    if rows.shape[1] == 0:
        return dx, dx if dresidual is None else dresidual, torch.empty_like(weight) if wants_weight else None
    parts = dweight = None
    if wants_weight:
        shape = rms_norm_gradient.num_parts(*rows.shape), rows.shape[1]
        parts = torch.empty(shape, dtype=torch.float32, device=dy.device)
        dweight = torch.empty_like(weight)
    rms_norm_gradient.backward(
        rows, as_rows(total), None if dtotal is None else as_rows(dtotal), weight, rstd, as_rows(dx),
        None if dresidual is None else as_rows(dresidual), parts, dweight,
    )  # fmt: skip
    return dx, dx if dresidual is None else dresidual, dweight
