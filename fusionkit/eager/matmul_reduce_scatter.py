"""matmul_reduce_scatter composed of the plain product and collective."""

from __future__ import annotations

from typing import Any

from fusionkit.eager.fused_linear import fused_linear
from fusionkit.parallel import collectives


def matmul_reduce_scatter(x: Any, weight: Any, *, group: Any) -> Any:
    return collectives.reduce_scatter(fused_linear(x, weight), group)
