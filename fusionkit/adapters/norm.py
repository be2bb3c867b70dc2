"""fusion_rms_norm by a device's op that takes one dtype for x and weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusionkit.adapters import nothing


def in_weight_dtype(run: Callable[[Any, Any], Any], x: Any, weight: Any) -> Any:
    """y = run(x, weight) with x in weight's dtype, so that a float32 master weight is not rounded.

    Args:
        run: (x, weight), both of weight's dtype, -> y, of any shape and dtype that x has. Not called without rows.
        x: [..., hidden_size], float32 / bfloat16 / float16.
        weight: [hidden_size], dtype of x or float32.

    Returns:
        [..., hidden_size], dtype of x; its gradients have the dtypes of x and weight.
    """
    if nothing.is_empty(x):
        return nothing.norm(x, weight)
    return run(x.astype(weight.dtype), weight).astype(x.dtype)
