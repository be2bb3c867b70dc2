"""The kernels of the toy device, as an author of a backend writes them with `fusionkit.adapters`."""

from __future__ import annotations

import paddle

from fusionkit.adapters import angles, attention, norm, nothing
from tests.adapters import toy_device


def _plain(q, k, v, causal):
    return toy_device.attention(q, k, v, None, causal)


def _masked(q, k, v, mask):
    return toy_device.attention(q, k, v, mask, False)


def flash_attention(q, k, v, *, causal=False, attn_mask=None, startend_row_indices=None):
    """The device's mask is bool."""
    return attention.attend(q, k, v, causal, attn_mask, startend_row_indices, plain=_plain, masked=_masked)


def fusion_rms_norm(x, weight, *, epsilon=1e-5):
    return norm.in_weight_dtype(lambda x, weight: toy_device.norm(x, weight, epsilon), x, weight)


def fusion_rope(q, k, cos, sin, *, position_ids=None, interleaved=False):
    if nothing.is_empty(q):
        return nothing.rotated(q, k)
    tables = [angles.per_element(table, q, position_ids) for table in (cos, sin)]

    def rotated(x):
        flat = angles.folded(x, position_ids).astype("float32")
        return angles.unfolded(toy_device.rope(flat, *tables).astype(x.dtype), x, position_ids)

    return rotated(q), rotated(k)


def flash_attention_added(q, k, v, *, causal=False, attn_mask=None, startend_row_indices=None):
    """Of another toy device, whose mask is added to the scores."""
    lowest = paddle.finfo(paddle.float32).min
    return attention.attend(
        q, k, v, causal, attn_mask, startend_row_indices, plain=_plain, masked=_masked, lowest=lowest
    )
