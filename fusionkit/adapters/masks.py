"""Attention masks as one dense tensor: for the composition, and for a device's op that takes no other.

A device's softmax over a row without any key may be NaN, forward and backward. `open_empty_rows` lets such a row attend
to everything, so that the caller can put zeros in its place: then its gradient is zero too.
"""

from __future__ import annotations

import math
from typing import Any

import paddle

from fusionkit.spec import UNKNOWN


def over_queries(attn_mask: Any, q: Any) -> Any:
    """The mask with an axis of q_len, for a device's op that takes no other."""
    if attn_mask is None or attn_mask.shape[2] != 1 or q.shape[1] == 1:
        return attn_mask
    return attn_mask.expand([-1, -1, paddle.shape(q)[1] if q.shape[1] == UNKNOWN else q.shape[1], -1])


def allowed(q: Any, k: Any, causal: bool, attn_mask: Any, startend_row_indices: Any) -> Any:
    """What may be attended to, bool [batch_size or 1, num_heads or 1, q_len, kv_len]; None when nothing is dropped."""
    q_len, kv_len = paddle.shape(q)[1], paddle.shape(k)[1]
    row = paddle.arange(q_len, dtype="int64").unsqueeze(-1)
    masks = []
    if causal:
        masks.append((paddle.arange(kv_len, dtype="int64") <= row + (kv_len - q_len)).unsqueeze([0, 1]))
    if attn_mask is not None and attn_mask.dtype == paddle.bool:
        masks.append(attn_mask)
    if startend_row_indices is not None:
        num_bounded = startend_row_indices.shape[1]
        if num_bounded != 1:
            startend_row_indices = paddle.repeat_interleave(startend_row_indices, q.shape[2] // num_bounded, axis=1)
        masks.append(~_hidden_by_rows(startend_row_indices, causal, row))
    together = None
    for mask in masks:
        together = mask if together is None else paddle.logical_and(together, mask)
    return together


def attended(q: Any, k: Any, causal: bool, attn_mask: Any, startend_row_indices: Any) -> Any:
    """As `allowed`, and without the keys that a floating mask drops; None without a mask."""
    together = allowed(q, k, causal, attn_mask, startend_row_indices)
    if attn_mask is None or attn_mask.dtype == paddle.bool:
        return together
    kept = attn_mask.cast("float32") > -math.inf
    return kept if together is None else paddle.logical_and(together, kept)


def without_dropped(keys: Any, attended: Any) -> Any:
    """k or v with zeros at the keys that no query attends to: a device's op multiplies them by 0, and 0 times NaN is
    NaN. A key that only some queries attend to reaches the others through such an op all the same."""
    seen = paddle.any(attended, axis=2).transpose([0, 2, 1])
    if seen.shape[2] != 1:
        seen = paddle.any(seen.reshape([*_sizes(seen)[:2], keys.shape[2], -1]), axis=-1)
    return paddle.where(seen.unsqueeze(-1), keys, paddle.zeros([], keys.dtype))


def _sizes(x: Any) -> list[Any]:
    return [paddle.shape(x)[axis] if size == UNKNOWN else size for axis, size in enumerate(x.shape)]


def finite_part(x: Any) -> Any:
    """x with 0 in place of NaN and infinities."""
    return paddle.where(paddle.isfinite(x), x, paddle.zeros([], x.dtype))


def _hidden_by_rows(startend_row_indices: Any, causal: bool, row: Any) -> Any:
    bounds = [bound.unsqueeze(-2) for bound in paddle.unbind(startend_row_indices.cast("int64"), axis=-1)]
    below = row >= bounds[0]
    if len(bounds) == 1:
        return below
    if len(bounds) == 4:
        return (below & (row < bounds[1])) | ((row >= bounds[2]) & (row < bounds[3]))
    return below & (row < bounds[1]) if causal else below | (row < bounds[1])


def open_empty_rows(allowed: Any) -> tuple[Any, Any]:
    """(allowed, with the rows that see no key opened; those rows, bool [.., q_len, 1])."""
    empty = paddle.logical_not(paddle.any(allowed, axis=-1, keepdim=True))
    return paddle.logical_or(allowed, empty), empty


def additive(allowed: Any, attn_mask: Any, lowest: float, dtype: Any) -> tuple[Any, Any]:
    """(what to add to the scores, the rows that see no key or None): `lowest` where a key is dropped, else attn_mask.

    `allowed` may be None, and attn_mask is None or floating; one of them is there. A finite `lowest` drops a key as
    -inf does beside any score that a model has, and gives no NaN where a block of a running softmax holds no other.
    """
    bias = None
    if attn_mask is not None and attn_mask.dtype != paddle.bool:
        bias = attn_mask.cast(dtype).detach()
        finite = bias > -math.inf
        allowed = finite if allowed is None else paddle.logical_and(allowed, finite)
        bias = paddle.where(finite, bias, paddle.zeros([], dtype))
    allowed, empty = open_empty_rows(allowed)
    kept = paddle.zeros([], dtype) if bias is None else bias
    return paddle.where(allowed, kept, paddle.full([], lowest, dtype)), empty


def zero_rows(out: Any, empty: Any) -> Any:
    """out [batch_size, q_len, num_heads, head_dim] with zeros in the rows that see no key."""
    return paddle.where(empty.transpose([0, 2, 1, 3]), paddle.zeros([], out.dtype), out)
