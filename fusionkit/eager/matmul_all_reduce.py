"""matmul_all_reduce composed of the plain product and collective."""

from __future__ import annotations

from typing import Any

from fusionkit.adapters.handle import Done
from fusionkit.eager.fused_linear import fused_linear
from fusionkit.parallel import collectives


def matmul_all_reduce(x: Any, weight: Any, *, group: Any, defer: bool = False) -> Any:
    """Nothing is deferred: the handle is for callers that run elsewhere too."""
    y = collectives.all_reduce(fused_linear(x, weight), group)
    return Done(y) if defer else y
