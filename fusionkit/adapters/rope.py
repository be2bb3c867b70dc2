"""fusion_rope by paddle.incubate.nn.functional.fused_rotary_position_embedding.

Its use_neox_rotary_style=False rotates halves and True neighbours: the other way round than other devices' is_neox.
cos and sin have q's dtype there, so 16-bit queries are rotated in float32. Rows are gathered here, so that only the
documented [1, seq_len, 1, head_dim] is used.
"""

from __future__ import annotations

from typing import Any


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False) -> Any:
    from paddle.incubate.nn import functional as F

    from fusionkit.adapters import angles, nothing

    if nothing.is_empty(q):
        return nothing.rotated(q, k)
    sin, cos = (angles.per_element(table, q, position_ids, interleaved) for table in (sin, cos))
    flat_q, flat_k = (angles.folded(x, position_ids).astype("float32") for x in (q, k))
    new_q, new_k, _ = F.fused_rotary_position_embedding(
        flat_q, flat_k, None, sin=sin, cos=cos, position_ids=None, use_neox_rotary_style=interleaved
    )
    return tuple(angles.unfolded(new.astype(x.dtype), x, position_ids) for new, x in ((new_q, q), (new_k, k)))
