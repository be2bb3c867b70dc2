"""flash_attention by flash_attention_npu, whose bool mask says True = drop and whose own causal mask is square.

It has no return_lse: the vendor's statistics have no gradient.
"""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device

OP = "flash_attention_npu"


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
    from fusionkit.adapters import attention

    def masked(q: Any, k: Any, v: Any, allowed: Any) -> Any:
        return _attend(q, k, v, ~allowed, False)

    return attention.attend(q, k, v, causal, attn_mask, startend_row_indices, plain=_plain, masked=masked)


def _plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
    return _attend(q, k, v, None, causal)


def _attend(q: Any, k: Any, v: Any, dropped: Any, causal: bool) -> Any:
    """dropped: [batch_size or 1, 1, q_len, kv_len]. An older plugin takes 10 arguments, a newer one 13: the last two
    optional inputs and the last attribute are of no use here."""
    newer = custom_device.argument_counts(OP) == (7, 6)
    inputs = (q, k, v, None, dropped, None, None) if newer else (q, k, v, None, dropped)
    # dropout, causal, return_softmax, is_test, is_triangle_upper_mask: as PaddleNLP 3.0.0b4 passes them.
    attributes = (0.0, causal, True, False, False, False) if newer else (0.0, causal, True, False, False)
    return custom_device.run(OP, inputs, *attributes)[0]
