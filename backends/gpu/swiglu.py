"""swiglu by paddle.incubate.nn.functional.swiglu(x, y) = silu(x) * y."""

from __future__ import annotations

from typing import Any


def swiglu(gate: Any, up: Any) -> Any:
    from paddle.incubate.nn import functional as F

    return F.swiglu(gate, up)
