"""Matrix products by cuBLAS through PyTorch, accumulated in float32 and rounded once."""

from __future__ import annotations

import torch


def product(
    a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None, add: bool = False
) -> torch.Tensor:
    """a @ b in this dtype, which is the operands' own or float32.

    Args:
        out: where the result goes, contiguous.
        add: to what `out`, in float32, holds.
    """
    if a.is_cuda and a.dtype != torch.float32 and dtype == torch.float32:
        if out is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.addmm(out, a, b, out_dtype=dtype, out=out) if add else torch.mm(a, b, out_dtype=dtype, out=out)
    if not a.is_cuda and a.dtype != torch.float32:
        # The CPU has no product of 16-bit operands with a float32 result: this stands in for cuBLAS in the tests.
        result = (a.float() @ b.float()).to(dtype)
        if out is None:
            return result
        return out.add_(result) if add else out.copy_(result)
    if out is None:
        return torch.mm(a, b)
    return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
