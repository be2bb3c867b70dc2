"""A weight packed once and multiplied by many chunks: a library product packs, or goes without, in every call."""

from __future__ import annotations

import numpy as np
from fusionkit_backends.cpu import runtime
from fusionkit_backends.cpu.overlap import span

from fusionkit.spec import Array


class PackedOperand:
    """weight [in_features, out_features], any strides, rounded to `dtype`, that of the arrays it multiplies."""

    def __init__(self, weight: Array, dtype: np.dtype) -> None:
        self.shape = weight.shape
        with span("compute", "pack"):
            self._packed = runtime.native().pack_weight(weight, dtype.name)

    def multiply(self, x: Array, out: Array, label: str = "product") -> None:
        """out = x @ weight; out is contiguous. Other threads run meanwhile."""
        with span("compute", label):
            runtime.native().linear_packed(x, self._packed, *self.shape, out=out)
