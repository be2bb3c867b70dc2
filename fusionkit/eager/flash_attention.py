"""flash_attention composed of Paddle's own ops: the scores are held whole."""

from __future__ import annotations

import math
from typing import Any

import paddle
import paddle.nn.functional as F

from fusionkit.eager import masks
from fusionkit.eager.precision import compute_dtype
from fusionkit.spec import UNKNOWN


def flash_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    attn_mask: Any = None,
    startend_row_indices: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    dtype = compute_dtype(q)
    num_heads, head_dim = q.shape[2:]
    factor = 1.0 / math.sqrt(head_dim) if scale is None else scale
    keys, values = (x.cast(dtype).transpose([0, 2, 1, 3]) for x in (k, v))
    queries = (q.cast(dtype) * factor).transpose([0, 2, 1, 3])
    scores = _grouped_product(queries, keys.transpose([0, 1, 3, 2])).cast("float32")
    if attn_mask is not None and attn_mask.dtype != paddle.bool:
        scores = scores + attn_mask.cast("float32").detach()
    allowed = masks.allowed(q, k, causal, attn_mask, startend_row_indices)
    if allowed is not None:
        scores = paddle.where(allowed, scores, paddle.full([], -math.inf, "float32"))
    probabilities, lse = _softmax(scores, allowed is not None or attn_mask is not None, return_lse)
    out = _grouped_product(probabilities.cast(dtype), values).transpose([0, 2, 1, 3]).cast(q.dtype)
    return (out, lse) if return_lse else out


def _grouped_product(rows: Any, matrices: Any) -> Any:
    """[B, heads, M, K] x [B, kv_heads, K, N]: the heads of a group are more rows, so no matrix is repeated."""
    batch_size, num_heads, num_rows, inner = rows.shape
    num_matrices, columns = matrices.shape[1], matrices.shape[3]
    grouped_rows = UNKNOWN if num_rows == UNKNOWN else num_heads // num_matrices * num_rows
    grouped = rows.reshape([_same(batch_size), num_matrices, grouped_rows, _same(inner)])
    product = paddle.matmul(grouped, matrices)
    return product.reshape([_same(batch_size), num_heads, num_rows, _same(columns)])


def _same(size: int) -> int:
    """What reshape takes for a size that stays: 0 if unknown. Paddle 3.3 misreads that 0 in an empty tensor."""
    return 0 if size == UNKNOWN else size


def _softmax(scores: Any, may_be_empty: bool, with_lse: bool) -> tuple[Any, Any]:
    """Probabilities and log-sum-exp; a row of -inf gives zeros and -inf, and no gradient."""
    if not may_be_empty:
        return F.softmax(scores, axis=-1), paddle.logsumexp(scores, axis=-1) if with_lse else None
    seen = paddle.any(scores > -math.inf, axis=-1, keepdim=True)
    zero = paddle.zeros([], "float32")
    scores = paddle.where(seen, scores, zero)
    probabilities = paddle.where(seen, F.softmax(scores, axis=-1), zero)
    if not with_lse:
        return probabilities, None
    lse = paddle.logsumexp(scores, axis=-1)
    return probabilities, paddle.where(seen.squeeze(-1), lse, paddle.full([], -math.inf, "float32"))
