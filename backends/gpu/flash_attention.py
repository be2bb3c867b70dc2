"""flash_attention by Paddle's: flash_attention without a mask, flashmask_attention with bounds of rows, and
scaled_dot_product_attention with a mask: attn_mask, or causal with two lengths, whose alignment differs from version
to version."""

from __future__ import annotations

from typing import Any


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
    import paddle
    from paddle.nn.functional import flash_attention as functions

    from fusionkit.eager import masks

    if 0 in q.shape or 0 in k.shape:
        return masks.of_nothing(q, k, v)
    attn_mask = masks.over_queries(attn_mask, q)
    square = q.shape[1] == k.shape[1] != -1
    if attn_mask is None and startend_row_indices is None and (square or not causal):
        return functions.flash_attention(q, k, v, dropout=0.0, causal=causal, return_softmax=False)[0]
    if startend_row_indices is not None:
        return functions.flashmask_attention(q, k, v, startend_row_indices, dropout=0.0, causal=causal)
    attended = masks.attended(q, k, causal, attn_mask, None)
    k, v = (masks.without_dropped(x, attended) for x in (k, v))
    allowed = masks.allowed(q, k, causal, attn_mask, None)
    bias, empty = masks.additive(allowed, attn_mask, paddle.finfo(q.dtype).min, q.dtype)
    out = paddle.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)
    return masks.zero_rows(out, empty)
