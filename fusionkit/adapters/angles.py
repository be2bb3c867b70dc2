"""The rows of cos and sin that tokens take, laid out for a device's rope op, which takes no position_ids.

Such an op rotates [batch_size, tokens, heads, head_dim] by [1, tokens, 1, head_dim]. With positions, the batch is
therefore folded into the sequence; without, the batch shares its rows.
"""

from __future__ import annotations

from typing import Any

import paddle


def folded(x: Any, position_ids: Any) -> Any:
    """[batch_size, seq_len, heads, head_dim], or with positions [1, batch_size * seq_len, heads, head_dim]."""
    return x if position_ids is None else x.reshape([1, -1, *x.shape[2:]])


def unfolded(y: Any, x: Any, position_ids: Any) -> Any:
    """y in the shape that x has; sizes may be unknown while a graph is traced."""
    if position_ids is None:
        return y
    sizes = paddle.shape(x)
    return y.reshape(x.shape if -1 not in x.shape else [sizes[0], sizes[1], *x.shape[2:]])


def rows(table: Any, x: Any, position_ids: Any) -> Any:
    """[tokens, head_dim / 2], tokens as in `folded`."""
    table = table.detach()
    if position_ids is None:
        return paddle.slice(table, [0], [0], [paddle.shape(x)[1]])
    return paddle.gather(table, position_ids.flatten())


def per_element(table: Any, x: Any, position_ids: Any, interleaved: bool = False) -> Any:
    """[1, tokens, 1, head_dim]: each angle for both elements of its pair."""
    half = rows(table, x, position_ids)
    both = paddle.repeat_interleave(half, 2, axis=-1) if interleaved else paddle.concat([half, half], axis=-1)
    return both.unsqueeze([0, 2])
