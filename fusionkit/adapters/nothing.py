"""Results of calls without any element: devices have nothing to launch, but every input has a gradient of zeros.

They are computed in float32: not every place has 16-bit arithmetic.
"""

from __future__ import annotations

from typing import Any

import paddle


def is_empty(*tensors: Any) -> bool:
    """Whether one of them has no element. A size that is not known while a graph is traced, -1, counts as some."""
    return any(0 in tensor.shape for tensor in tensors)


def norm(x: Any, weight: Any) -> Any:
    """fusion_rms_norm of x without rows: x [..., hidden_size], dtype of x."""
    return (x.astype("float32") * weight.astype("float32")).astype(x.dtype)


def rotated(q: Any, k: Any) -> tuple[Any, Any]:
    """fusion_rope of q and k without tokens: copies of both."""
    return q.clone(), k.clone()


def attention(q: Any, k: Any, v: Any) -> Any:
    """flash_attention without queries or without keys: zeros [batch_size, q_len, num_heads, head_dim], dtype of q."""
    keys, values = (x.astype("float32").sum() for x in (k, v))
    return ((q.astype("float32") + keys + values) * 0).astype(q.dtype)


def product(x: Any, weight: Any) -> Any:
    """x @ weight of x without rows: [..., out_features], dtype of x; the weight's gradient is zeros of its dtype."""
    return paddle.matmul(x.astype("float32"), weight.astype("float32")).astype(x.dtype)
