"""x^T dy, whole or summed over the shards of a group as they arrive."""

from __future__ import annotations

import numpy as np
from fusionkit_backends.cpu import runtime
from fusionkit_backends.cpu.overlap import span

from fusionkit.spec import Array


class WeightGradient:
    """dweight = sum over the added pairs of x^T @ dy, accumulated in float32; the order of adding is the sum's."""

    def __init__(self, dweight: Array) -> None:
        self._dweight = dweight
        self._sum: Array | None = None

    def whole(self, x: Array, dy: Array) -> None:
        with span("compute", "weight gradient"):
            runtime.native().weight_grad(x, dy, self._dweight)

    def add(self, x: Array, dy: Array) -> None:
        with span("compute", "weight gradient"):
            is_first = self._sum is None
            if self._sum is None:
                wide = self._dweight.dtype == np.float32
                self._sum = self._dweight if wide else np.empty(self._dweight.shape, np.float32)
            runtime.native().weight_grad(x, dy, self._sum, not is_first)

    def finish(self) -> None:
        """Round the sum, where dweight has 16 bits."""
        if self._sum is not None and self._sum is not self._dweight:
            runtime.native().cast(self._sum, self._dweight)
