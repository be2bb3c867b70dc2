"""What `fusionkit bench mc2` needs of the CPU: its best unsplit products, its own chunks, and overlap switched off.

Every product takes the weight as the op does, unpacked, and lays it out in each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fusionkit_backends.cpu import runtime
from fusionkit_backends.cpu.overlap import record, serially

from fusionkit.spec import Array

__all__ = ["chunks", "gradients", "num_chunks", "products", "record", "serially"]


def products() -> dict[str, Callable[[Array, Array], object]]:
    """x [M, K] @ weight [K, N], the ways there are: the fastest is the baseline."""
    native = runtime.native()
    return {
        "oneDNN's product": lambda x, weight: native.linear(x, weight, None),
        "oneDNN's product, weight packed": lambda x, weight: native.linear_packed(
            x, native.pack_weight(weight, x.dtype.name), *weight.shape, None
        ),
    }


def gradients() -> dict[str, Callable[[Array, Array, Array], object]]:
    """dy @ weight^T and x^T @ dy, the ways there are."""
    native = runtime.native()

    def packed(x: Array, weight: Array, dy: Array) -> object:
        dx = native.linear_packed(dy, native.pack_weight(weight.T, x.dtype.name), *weight.T.shape, None)
        return dx, native.weight_grad(x, dy, np.empty(weight.shape, x.dtype))

    return {
        "oneDNN's products": lambda x, weight, dy: native.linear_grad(x, weight, dy, None),
        "oneDNN's products, weight packed": packed,
    }


def num_chunks(op: str, direction: str, M: int, K: int, N: int, communicator: Any) -> int:
    return 1


def chunks(
    op: str, direction: str, x: Array, weight: Array, dy: Array, communicator: Any
) -> Callable[[], object] | None:
    return None
