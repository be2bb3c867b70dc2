"""fusion_rope on the CPU."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime

from fusionkit.errors import argument_error


def through_paddle(
    q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False
) -> tuple[Any, Any]:
    q, k, cos, sin, position_ids = paddle_ops.inputs(q, k, cos, sin, position_ids)
    q, k = paddle_ops.run("fusionkit_fusion_rope", q, k, cos, sin, position_ids, interleaved)
    return q, k


def through_numpy(
    q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False
) -> tuple[Any, Any]:
    if q.shape[:2] != k.shape[:2] or q.shape[3:] != k.shape[3:]:
        rule = f"like q {list(q.shape)}, but for its heads"
        raise argument_error("fusion_rope", "k", rule, list(k.shape))
    rope = runtime.native().rope
    return rope(q, cos, sin, position_ids, interleaved), rope(k, cos, sin, position_ids, interleaved)


def vjp(
    grad_outputs: Any, q: Any, k: Any, cos: Any, sin: Any, *, position_ids: Any = None, interleaved: bool = False
) -> dict[str, Any]:
    rope = runtime.native().rope
    dq, dk = (rope(dy, cos, sin, position_ids, interleaved, inverse=True) for dy in grad_outputs)
    return {"q": dq, "k": dk}
