"""Rows of floats as GGUF's blocks Q4_K and Q6_K, which the library `gguf` reads and does not write.

Each group is rounded to its nearest codes. llama.cpp searches for better scales; any codes will do here.
"""

from __future__ import annotations

import numpy as np


def q4_k(rows):
    """[rows, multiple of 256] -> uint8: 8 groups of 32, value = d * factor * code - dmin * step."""
    groups = rows.astype(np.float64).reshape(-1, 8, 32)
    lows = np.minimum(groups.min(axis=2), 0)
    d, factors = in_steps((groups.max(axis=2) - lows) / 15, 63)
    dmin, steps = in_steps(-lows, 63)
    scales = np.maximum(d * factors, 1e-30)[..., None]
    codes = np.clip(np.rint((groups + (dmin * steps)[..., None]) / scales), 0, 15).astype(np.uint8)
    first = factors[:, :4] | factors[:, 4:] >> 4 << 6
    second = steps[:, :4] | steps[:, 4:] >> 4 << 6
    both = factors[:, 4:] & 15 | (steps[:, 4:] & 15) << 4
    halves = codes[:, ::2] | codes[:, 1::2] << 4
    parts = half(d), half(dmin), first, second, both, halves.reshape(len(groups), -1)
    return np.concatenate(parts, axis=1).reshape(len(rows), -1)


def q6_k(rows):
    """[rows, multiple of 256] -> uint8: 16 groups of 16, value = d * factor * (code - 32)."""
    groups = rows.astype(np.float64).reshape(-1, 16, 16)
    d, factors = in_steps(np.abs(groups).max(axis=2) / 31, 127)
    scales = np.maximum(d * factors, 1e-30)[..., None]
    codes = (np.clip(np.rint(groups / scales), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce(codes >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    parts = low.reshape(-1, 128), high.reshape(-1, 64), factors, half(d)
    return np.concatenate(parts, axis=1).reshape(len(rows), -1)


def in_steps(values, most):
    """(d, factors) of each block's values: d * factor is near the value, d [blocks, 1] is float16."""
    d = (values.max(axis=1, keepdims=True) / most).astype(np.float16).astype(np.float64)
    return d, np.clip(np.rint(values / np.maximum(d, 1e-30)), 0, most).astype(np.uint8)


def half(values):
    return values.astype(np.float16).view(np.uint8)
