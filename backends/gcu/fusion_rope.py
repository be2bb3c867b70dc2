"""fusion_rope by fused_rotary_embedding_gcu(query, key, cos_sin_table, positions; is_neox), q and k together."""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False) -> Any:
    import paddle

    from fusionkit.adapters import angles, nothing

    if nothing.is_empty(q):
        return nothing.rotated(q, k)
    # Only the rows that tokens take are joined: the whole table is 2 MB a call at 4096 positions of 128.
    table = paddle.concat([angles.rows(half, q, position_ids) for half in (cos, sin)], axis=-1)
    flat_q, flat_k = angles.folded(q, position_ids), angles.folded(k, position_ids)
    positions = paddle.arange(paddle.shape(table)[0], dtype="int64").unsqueeze(0)
    positions = positions.expand([paddle.shape(flat_q)[0], -1])
    new_q, new_k = custom_device.run("fused_rotary_embedding_gcu", (flat_q, flat_k, table, positions), not interleaved)
    return angles.unfolded(new_q, q, position_ids), angles.unfolded(new_k, k, position_ids)
