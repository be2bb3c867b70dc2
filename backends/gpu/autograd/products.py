"""Matrix products by cuBLAS through PyTorch, accumulated in float32 and rounded once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Reduction:
    """PyTorch's flag of one dtype. It is the process's: the first product in flight clears it, the last restores it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.num_holders = 0
        self.was_set = False

    def clear(self) -> None:
        settings = torch.backends.cuda.matmul
        with self.lock:
            if self.num_holders == 0:
                self.was_set = getattr(settings, self.name)
                if self.was_set:
                    setattr(settings, self.name, False)
            self.num_holders += 1

    def restore(self) -> None:
        with self.lock:
            self.num_holders -= 1
            if self.num_holders == 0 and self.was_set:
                setattr(torch.backends.cuda.matmul, self.name, True)


_REDUCTIONS = {
    torch.bfloat16: _Reduction("allow_bf16_reduced_precision_reduction"),
    torch.float16: _Reduction("allow_fp16_reduced_precision_reduction"),
}


@contextmanager
def rounded_once(dtype: torch.dtype) -> Iterator[None]:
    """PyTorch lets cuBLAS add the parts of a product that is split along its depth in 16 bits: not here."""
    reduction = _REDUCTIONS.get(dtype)
    if reduction is None:
        yield
        return
    reduction.clear()
    try:
        yield
    finally:
        reduction.restore()


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
    with rounded_once(a.dtype):
        if out is None:
            return torch.mm(a, b)
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)


def product_and_bias(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """a @ b + bias [columns], in a's dtype; in cuBLAS's epilogue where the dtypes agree."""
    if bias.dtype == a.dtype and (a.is_cuda or a.dtype == torch.float32):
        with rounded_once(a.dtype):
            return torch.addmm(bias, a, b)
    return (product(a, b, torch.float32) + bias.float()).to(a.dtype)  # a float32 bias must not be rounded
