"""The arithmetic of a reduction without its communication."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from fusionkit.errors import argument_error
from fusionkit.parallel.native import DTYPES, library

Array = np.ndarray[Any, Any]

_FLOATS = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)]


def sum_in_order(arrays: Sequence[Array], out: Array) -> Array:
    """((a0 + a1) + a2) + ..., as the communicator's reductions add: the same bits, whoever computes them.

    Args:
        arrays: at least one, of one shape and dtype, contiguous: float16, bfloat16 or float32.
        out: of the same shape, contiguous: float16, bfloat16 or float32. It may be one of `arrays`.

    Returns:
        out. The sum is accumulated in float32 and rounded once.

    Raises:
        ValueError, TypeError: other shapes, dtypes or layouts.
    """
    if not arrays:
        raise argument_error("sum_in_order", "arrays", "at least one array", "none")
    for name, array in [*(("arrays", each) for each in arrays), ("out", out)]:
        if array.dtype not in _FLOATS:
            raise argument_error(
                "sum_in_order", f"{name}' dtype", "float16, bfloat16 or float32", array.dtype, kind=TypeError
            )
        if array.shape != out.shape or not array.flags.c_contiguous:
            raise argument_error("sum_in_order", name, f"contiguous and {list(out.shape)}", list(array.shape))
    if any(array.dtype != arrays[0].dtype for array in arrays):
        raise argument_error("sum_in_order", "arrays", "of one dtype", ", ".join(str(each.dtype) for each in arrays))
    sources = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    library().fusionkit_parallel_sum_in_order(
        DTYPES.index(arrays[0].dtype), sources, len(arrays), out.size, DTYPES.index(out.dtype), out.ctypes.data
    )
    return out
