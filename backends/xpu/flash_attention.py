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
) -> Any:
    import paddle
    from paddle.nn.functional import scaled_dot_product_attention

    from fusionkit.adapters import attention

    def plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
        return scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=causal)

    def masked(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)

    lowest = max(LOWEST, paddle.finfo(q.dtype).min)
    return attention.attend(
        q, k, v, causal, attn_mask, startend_row_indices, plain=plain, masked=masked, lowest=lowest
    )  # fmt: skip
