"""What a product with `activations="int8"` multiplies in x's place: each number of a row rounded to one of 255.

A run is 32 numbers of a row. Beside weights in groups of 16 it is 16 numbers. The last run may be shorter.

    power = the largest power of two that is not above the row's largest magnitude
    scale = the largest magnitude of x / power in the run / 127
    x     becomes    power * scale * code,    code = 127 * (x / power) / (the same largest magnitude), rounded

Both divisions and the product are in float32, and a tie goes to the even code. So each number is within half a
`power * scale` of x, but for float32's rounding: within 1/254 of its run's largest magnitude.
"""

from __future__ import annotations

import numpy as np

from fusionkit.spec import Array

RUN, SHORT_RUN = 32, 16
_MOST = np.float32(127)
# Of a run divided by its row's power: what is smaller becomes 0. And float32's smallest normal power of two.
_SMALLEST, _SMALLEST_POWER = np.float32(2.0**-90), np.float32(2.0**-126)


def rounded_to_int8(x: Array, group_size: int | None) -> Array:
    """x as the product sees it.

    Args:
        x: [..., in_features]; what float32 holds of it is rounded.
        group_size: of the weight.

    Returns:
        float64, of x's shape. Rows with infinity or NaN stay as they are.

    Source: the block formats of llama.cpp, which rounds activations to int8 in the same way.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    run = SHORT_RUN if group_size == SHORT_RUN else RUN
    finite = np.logical_and.reduce(np.isfinite(rows), axis=1)
    power = _power_below(np.abs(np.where(finite[:, None], rows, 0)).max(axis=1, initial=0))
    runs = np.pad(np.where(finite[:, None], rows, 0) / power[:, None], ((0, 0), (0, -rows.shape[1] % run)))
    runs = runs.reshape(len(rows), -1, run)
    largest = np.maximum(np.abs(runs).max(axis=2, initial=0, keepdims=True), _SMALLEST)
    codes, scales = np.rint(runs * (_MOST / largest)), largest / _MOST
    values = codes.astype(np.float64) * scales * power.astype(np.float64)[:, None, None]
    values = values.reshape(len(rows), -1)[:, : rows.shape[1]]
    return np.where(finite[:, None], values, rows.astype(np.float64)).reshape(x.shape)


def _power_below(magnitude: Array) -> Array:
    _, exponents = np.frexp(magnitude)
    power: Array = np.maximum(np.ldexp(np.float32(1), exponents - 1), _SMALLEST_POWER)
    return power
