"""A quantized weight in the bytes that the kernel library reads: csrc/kernels/quantized_product.h says how they lie.

The bytes are the same for every instruction set, and are made once, when the weight is packed: panel by panel, so that
there is nothing in memory but the weight and its pack.
"""

from __future__ import annotations

import numpy as np
from fusionkit_backends.cpu import runtime

from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array


def quantized_panels(weight: QuantizedWeight) -> Array:
    """The packed bytes, uint8, aligned to 64."""
    group_size = weight.group_size or max(weight.shape[0], 1)
    codes = weight.codes.view(np.uint8)
    how = weight.bits, group_size, weight.scale_dtype, weight.activations is not None
    packed: Array = runtime.native().pack_quantized(codes, weight.scales, weight.minimums, *how)
    return packed
