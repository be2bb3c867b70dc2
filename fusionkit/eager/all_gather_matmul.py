"""all_gather_matmul composed of the plain collective and product."""

from __future__ import annotations

from typing import Any

from fusionkit.eager.fused_linear import fused_linear
from fusionkit.parallel import collectives


def all_gather_matmul(
    x: Any, weight: Any, *, group: Any, return_gathered: bool = False, save_gathered: bool = True
) -> Any:
    """The framework's product keeps what it multiplied, so gathered is saved whatever save_gathered says."""
    gathered = collectives.all_gather(x, group)
    y = fused_linear(gathered, weight)
    return (y, gathered) if return_gathered else y
