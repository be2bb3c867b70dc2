"""flash_attention by fused_sdp_flash_attention_gcu, whose mask is added to the scores, float16 [B, 1, q_len, kv_len].

Its contract says nothing of grouped heads, of causal with two lengths, or of causal beside a mask: keys are repeated,
and the rest goes into the mask.
"""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device

LOWEST = -65504.0  # of float16: scores cannot reach it


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

    from fusionkit.eager import masks

    if 0 in q.shape or 0 in k.shape:
        return masks.of_nothing(q, k, v)
    attn_mask = masks.over_queries(attn_mask, q)
    group = q.shape[2] // k.shape[2]
    keys, values = (x if group == 1 else x.repeat_interleave(group, axis=2) for x in (k, v))
    square = q.shape[1] == k.shape[1] != -1
    if attn_mask is None and startend_row_indices is None and (square or not causal):
        return _attend(q, keys, values, None, causal)
    attended = masks.attended(q, k, causal, attn_mask, startend_row_indices)
    keys, values = (masks.without_dropped(x, attended) for x in (keys, values))
    allowed = masks.allowed(q, k, causal, attn_mask, startend_row_indices)
    bias, empty = masks.additive(allowed, attn_mask, LOWEST, q.dtype)
    bias = bias.expand([paddle.shape(q)[0] if q.shape[0] == -1 else q.shape[0], -1, -1, -1])
    return masks.zero_rows(_attend(q, keys, values, bias, False), empty)


def _attend(q: Any, k: Any, v: Any, bias: Any, causal: bool) -> Any:
    # dropout, causal, is_test
    return custom_device.run("fused_sdp_flash_attention_gcu", (q, k, v, bias), 0.0, causal, True)[0]
