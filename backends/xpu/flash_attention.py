"""flash_attention by paddle.nn.functional.scaled_dot_product_attention, with every mask added to the scores."""

from __future__ import annotations

from typing import Any

LOWEST = -1e37  # the vendor's, where the dtype reaches so far; not the dtype's minimum


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
    from paddle.nn.functional import scaled_dot_product_attention

    from fusionkit.eager import masks

    if 0 in q.shape or 0 in k.shape:
        return masks.of_nothing(q, k, v)
    attn_mask = masks.over_queries(attn_mask, q)
    square = q.shape[1] == k.shape[1] != -1
    if attn_mask is None and startend_row_indices is None and (square or not causal):
        return scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=causal)
    attended = masks.attended(q, k, causal, attn_mask, startend_row_indices)
    k, v = (masks.without_dropped(x, attended) for x in (k, v))
    allowed = masks.allowed(q, k, causal, attn_mask, startend_row_indices)
    bias, empty = masks.additive(allowed, attn_mask, max(LOWEST, paddle.finfo(q.dtype).min), q.dtype)
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)
    return masks.zero_rows(out, empty)
