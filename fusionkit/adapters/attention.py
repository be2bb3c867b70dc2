"""flash_attention by a device's op that has a causal mask of its own for as many queries as keys, and one dense mask.

Other masks become the dense one. A row that sees no key gives zeros and zero gradients, and a key that no query attends
to reaches nothing, whatever the device's softmax makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusionkit.adapters import masks, nothing

# (q, k, v, causal) -> out, without a mask; causal only where q_len == kv_len, both known.
Plain = Callable[[Any, Any, Any, bool], Any]
# (q, k, v, mask) -> out, with a mask [batch_size or 1, num_heads or 1, q_len, kv_len] and none of its own.
Masked = Callable[[Any, Any, Any, Any], Any]


def attend(
    q: Any,
    k: Any,
    v: Any,
    causal: bool,
    attn_mask: Any,
    startend_row_indices: Any,
    *,
    plain: Plain,
    masked: Masked,
    lowest: float | None = None,
) -> Any:
    """flash_attention by `plain` where the call needs no mask that the device lacks, else by `masked`.

    Args:
        q: [batch_size, q_len, num_heads, head_dim]. k, v: [batch_size, kv_len, num_key_value_heads, head_dim].
        attn_mask: None, bool, or with `lowest` floating: [batch_size or 1, num_heads or 1, q_len or 1, kv_len].
        startend_row_indices: None or [batch_size, num_key_value_heads or 1, kv_len, 1 | 2 | 4], int32.
        lowest: None: the device's mask is bool, True = attend. Else it is added to the scores in q's dtype, and drops a
            key by this finite number, which q's dtype holds and which no score comes near.

    Returns:
        [batch_size, q_len, num_heads, head_dim], dtype of q. Nothing runs where q or k has no element.
    """
    if nothing.is_empty(q, k):
        return nothing.attention(q, k, v)
    attn_mask = masks.over_queries(attn_mask, q)
    square = q.shape[1] == k.shape[1] != -1
    if attn_mask is None and startend_row_indices is None and (square or not causal):
        return plain(q, k, v, causal)
    attended = masks.attended(q, k, causal, attn_mask, startend_row_indices)
    k, v = (masks.without_dropped(x, attended) for x in (k, v))
    if lowest is None:
        mask, empty = masks.open_empty_rows(attended)
    else:
        mask, empty = masks.additive(attended, attn_mask, lowest, q.dtype)
    return masks.zero_rows(masked(q, k, v, mask), empty)
