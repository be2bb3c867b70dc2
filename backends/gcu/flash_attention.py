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
) -> Any:
    from fusionkit.adapters import attention

    return attention.attend(
        q, k, v, causal, attn_mask, startend_row_indices, plain=_plain, masked=_masked, lowest=LOWEST
    )  # fmt: skip


def _plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
    return _attend(q, k, v, None, causal)


def _masked(q: Any, k: Any, v: Any, bias: Any) -> Any:
    import paddle

    batch_size = paddle.shape(q)[0] if q.shape[0] == -1 else q.shape[0]
    return _attend(q, k, v, bias.expand([batch_size, -1, -1, -1]), False)


def _attend(q: Any, k: Any, v: Any, bias: Any, causal: bool) -> Any:
    group = q.shape[2] // k.shape[2]
    keys, values = (x if group == 1 else x.repeat_interleave(group, axis=2) for x in (k, v))
    # dropout, causal, is_test
    return custom_device.run("fused_sdp_flash_attention_gcu", (q, keys, values, bias), 0.0, causal, True)[0]
