"""What a composition computes in: Paddle's CPU place has no 16-bit matmul, add, silu or softmax."""

from __future__ import annotations

from typing import Any

import paddle

SIXTEEN_BITS = (paddle.bfloat16, paddle.float16)


def on_host(x: Any) -> bool:
    """Whether x is in host memory; a static graph's value has no place, so there the current device decides."""
    if isinstance(x, paddle.Tensor):
        return bool(x.place.is_cpu_place())
    return bool(paddle.get_device() == "cpu")


def compute_dtype(x: Any) -> Any:
    """float32 for 16-bit x on the CPU place, else x's dtype."""
    return paddle.float32 if x.dtype in SIXTEEN_BITS and on_host(x) else x.dtype


def accumulation_dtype(x: Any) -> Any:
    """The dtype to sum in, and to hold products that leave float32 although the result does not.

    Paddle's float32 mean over 5120 elements on the CPU is 12 to 24 epsilons off; squares of 1e20 are inf. Off the host
    it is float32: not every device has float64.
    """
    return paddle.float64 if on_host(x) else paddle.float32


def rounded_to(dtype: Any, x: Any) -> Any:
    """float32 x rounded to dtype and back, which is the identity to the gradient."""
    if dtype == x.dtype:
        return x
    return x + (x.astype(dtype).astype(x.dtype) - x).detach()
