"""flash_attention by Paddle's: flash_attention without a mask, flashmask_attention with bounds of rows, and
scaled_dot_product_attention with a mask: attn_mask, or causal with two lengths, whose alignment differs from version
to version.

It has no return_lse: that of Paddle's has no gradient.
"""

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
) -> Any:
    import paddle
    from paddle.nn.functional import flash_attention as functions

    from fusionkit.adapters import attention, nothing

    if startend_row_indices is not None and not nothing.is_empty(q, k):
        return functions.flashmask_attention(q, k, v, startend_row_indices, dropout=0.0, causal=causal)

    def plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
        return functions.flash_attention(q, k, v, dropout=0.0, causal=causal, return_softmax=False)[0]

    def masked(q: Any, k: Any, v: Any, bias: Any) -> Any:
        attend = paddle.nn.functional.scaled_dot_product_attention
        return attend(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)

    lowest = paddle.finfo(q.dtype).min
    return attention.attend(q, k, v, causal, attn_mask, None, plain=plain, masked=masked, lowest=lowest)
