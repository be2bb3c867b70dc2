"""flash_attention composed of Paddle's own ops: the scores are held whole."""

from __future__ import annotations

import math
from typing import Any

import paddle
import paddle.nn.functional as F

from fusionkit.adapters import masks
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
    attended = masks.attended(q, k, causal, attn_mask, startend_row_indices)
    if attended is None:
        scores = _biased(_grouped_product(queries, keys.transpose([0, 1, 3, 2])), attn_mask)
        out, lse = _attend_all(scores, values, return_lse)
    else:
        scores = _biased(_finite_scores(queries, keys), attn_mask)
        out, lse = _attend_some(scores, values, attended, return_lse)
    out = out.transpose([0, 2, 1, 3]).cast(q.dtype)
    return (out, lse) if return_lse else out


def _biased(scores: Any, attn_mask: Any) -> Any:
    scores = scores.cast("float32")
    if attn_mask is None or attn_mask.dtype == paddle.bool:
        return scores
    return scores + attn_mask.cast("float32").detach()


def _attend_all(scores: Any, values: Any, with_lse: bool) -> tuple[Any, Any]:
    probabilities = F.softmax(scores, axis=-1).cast(values.dtype)
    return _grouped_product(probabilities, values), paddle.logsumexp(scores, axis=-1) if with_lse else None


def _finite_scores(queries: Any, keys: Any) -> Any:
    """NaN for the scores of a query or a key that is not finite; the products themselves, and so their gradients, are
    of finite numbers: 0, the gradient of a dropped score, times NaN would be NaN."""
    scores = _grouped_product(masks.finite_part(queries), masks.finite_part(keys).transpose([0, 1, 3, 2]))
    group = queries.shape[1] // keys.shape[1]
    of_keys = _nan_where_not_finite(keys).unsqueeze(-2)
    of_keys = of_keys if group == 1 else paddle.repeat_interleave(of_keys, group, axis=1)
    return scores.cast("float32") + _nan_where_not_finite(queries).unsqueeze(-1) + of_keys


def _nan_where_not_finite(rows: Any) -> Any:
    """[..., size] -> [...]: NaN for a row that holds what is not finite, else 0."""
    finite = paddle.all(paddle.isfinite(rows), axis=-1)
    return paddle.where(finite, paddle.zeros([], "float32"), paddle.full([], math.nan, "float32"))


def _attend_some(scores: Any, values: Any, attended: Any, with_lse: bool) -> tuple[Any, Any]:
    """Zeros, -inf for lse and no gradient for a row that attends to nothing; nothing of a dropped key."""
    zero, lowest = paddle.zeros([], "float32"), paddle.full([], -math.inf, "float32")
    seen = paddle.any(attended, axis=-1, keepdim=True)
    scores = paddle.where(seen, paddle.where(attended, scores, lowest), zero)
    probabilities = paddle.where(attended, F.softmax(scores, axis=-1), zero)
    out = _grouped_product(probabilities.cast(values.dtype), masks.finite_part(values))
    # Times the row's sum, which is 1: so the scores of a row that attends to NaN get NaN for gradients.
    out = out + _not_finite_sums(attended, values, scores) * probabilities.sum(-1, keepdim=True).cast(out.dtype)
    if not with_lse:
        return out, None
    return out, paddle.where(seen.squeeze(-1), paddle.logsumexp(scores, axis=-1), lowest)


def _not_finite_sums(attended: Any, values: Any, scores: Any) -> Any:
    """What the values that are not finite add to the rows that attend to them: 0, an infinity or NaN."""
    nan = paddle.isnan(values)
    found = paddle.concat([nan | (values == math.inf), nan | (values == -math.inf)], axis=-1).cast(values.dtype)
    pairs = paddle.logical_and(attended, paddle.ones_like(scores, dtype="bool")).cast(values.dtype)
    above, below = paddle.split(_grouped_product(pairs, found), 2, axis=-1)
    zero, infinity = paddle.zeros([], values.dtype), paddle.full([], math.inf, values.dtype)
    return paddle.where(above > 0, infinity, zero) - paddle.where(below > 0, infinity, zero)


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
