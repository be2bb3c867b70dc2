"""fusion_rope by fused_rope(query, cos, sin), once for q and once for k.

The op has no position_ids, and takes cos and sin in query's dtype: rows are gathered, and 16-bit queries rotated in
float32, because the angles' rounding would be as large as the output's.
"""

from __future__ import annotations

from typing import Any

from fusionkit.frameworks import custom_device


def fusion_rope(q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None) -> Any:
    from fusionkit.adapters import angles, nothing

    if nothing.is_empty(q):
        return nothing.rotated(q, k)
    tables = tuple(angles.per_element(table, q, position_ids) for table in (cos, sin))

    def rotated(x: Any) -> Any:
        flat = angles.folded(x, position_ids).astype("float32")
        return angles.unfolded(custom_device.run("fused_rope", (flat, *tables))[0].astype(x.dtype), x, position_ids)

    return rotated(q), rotated(k)
