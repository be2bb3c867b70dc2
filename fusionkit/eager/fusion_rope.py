"""fusion_rope composed of Paddle's own ops, in float32 on every place: cos and sin are never cast."""

from __future__ import annotations

from typing import Any

import paddle

from fusionkit.errors import argument_error


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False) -> Any:
    if position_ids is not None:
        _check_positions(position_ids, cos.shape[0])
    cos, sin = (_angles(table, q, position_ids) for table in (cos, sin))
    return tuple(_rotate(x, cos, sin, interleaved) for x in (q, k))


def _check_positions(position_ids: Any, max_position: int) -> None:
    """Gathering would read other memory. While a graph is traced there are no values to look at."""
    if not paddle.in_dynamic_mode() or position_ids.size == 0:
        return
    low, high = int(position_ids.min()), int(position_ids.max())
    if low < 0 or high >= max_position:
        rule = f"in [0, {max_position})"
        raise argument_error("fusion_rope", "position_ids", rule, f"{low}..{high}", f"cos has {max_position} rows")


def _angles(table: Any, x: Any, position_ids: Any) -> Any:
    """[batch_size or 1, seq_len, 1, head_dim / 2]."""
    table = table.detach()
    if position_ids is None:
        return paddle.slice(table, [0], [0], [paddle.shape(x)[1]]).unsqueeze([0, 2])
    return paddle.gather_nd(table, position_ids.unsqueeze(-1)).unsqueeze(2)


def _rotate(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    half = x.shape[-1] // 2
    wide = x.cast("float32")
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return paddle.stack(rotated, axis=-1 if interleaved else -2).flatten(-2).cast(x.dtype)
