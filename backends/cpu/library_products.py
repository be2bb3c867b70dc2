"""Products by the libraries at hand, none of them ours: what is held against them cannot flatter itself.

A maker takes x [M, K] and weight [K, N] of one dtype, may lay the weight out beforehand, and returns the call that
multiplies them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from fusionkit_backends.cpu import runtime

from fusionkit import extras
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.spec import Array

Call = Callable[[], object]
Maker = Callable[[Array, Array], Call]
FLOAT32 = "float32"


@functools.lru_cache(maxsize=1)  # forward and backward of a call have one size, and most calls that of the one before
def calls(rows: int, k: int, n: int, dtype: str, apart: bool) -> dict[str, Call]:
    """Each library's way to the product: in `dtype`, and in float32, which may be the faster on this processor."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((rows, k), np.float32), rng.standard_normal((k, n), np.float32)
    found = {}
    for each in dict.fromkeys((dtype, FLOAT32)):
        makers = beside_no_paddle(each) if apart else beside_paddle(each)
        operands = [array.astype(DTYPES[each], copy=False) for array in (x, weight)] if makers else []
        for name, make in makers.items():
            found[f"{name}, {each}"] = make(*operands)
    return found


def beside_paddle(dtype: str) -> dict[str, Maker]:
    """Of the libraries that compute with Paddle's threads."""
    found: dict[str, Maker] = {}
    if runtime.native().has_onednn() and dtype in arithmetic():
        found["Paddle's oneDNN, packed"] = onednn
    if dtype == FLOAT32 and not extras.missing("paddle"):
        found["Paddle"] = paddle
    return found


def beside_no_paddle(dtype: str) -> dict[str, Maker]:
    """Of the libraries that have threads of their own."""
    found: dict[str, Maker] = {"NumPy": numpy} if dtype == FLOAT32 else {}
    if extras.missing("torch"):
        return found
    import torch

    if dtype == FLOAT32 or (dtype == "bfloat16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        found["PyTorch"] = pytorch
        if hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):  # no public one takes a packed weight
            found["PyTorch's oneDNN, packed"] = pytorch_packed
    return found


def arithmetic() -> list[str]:
    """The dtypes that this processor multiplies in."""
    return [dtype for dtype in (FLOAT32, "bfloat16") if runtime.native().multiply_in_registers(dtype, 1)]


def onednn(x: Array, weight: Array) -> Call:
    multiply, y = runtime.native().onednn_product(weight), np.empty((len(x), weight.shape[1]), x.dtype)

    def call() -> object:
        multiply(x, y)
        return y

    return call


def paddle(x: Array, weight: Array) -> Call:
    import paddle

    from fusionkit.frameworks.paddle import from_numpy

    operands = [from_numpy(each, "cpu") for each in (x, weight)]

    def call() -> object:
        with paddle.no_grad():
            return paddle.matmul(*operands)

    return call


def numpy(x: Array, weight: Array) -> Call:
    return functools.partial(np.matmul, x, weight, out=np.empty((len(x), weight.shape[1]), x.dtype))


def pytorch(x: Array, weight: Array) -> Call:
    import torch
    from fusionkit_bench.torch_peers import to_torch

    left, right = to_torch(x), to_torch(weight)
    return functools.partial(torch.mm, left, right, out=left.new_empty(len(x), weight.shape[1]))


def pytorch_packed(x: Array, weight: Array) -> Call:
    import torch
    from fusionkit_bench.torch_peers import to_torch

    left = to_torch(x)
    packed = torch.ops.mkldnn._reorder_linear_weight(to_torch(weight).T.contiguous(), len(x))
    return functools.partial(torch.ops.mkldnn._linear_pointwise, left, packed, None, "none", [], "")
