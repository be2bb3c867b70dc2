"""Quantized tensors of GGUF files as `QuantizedWeight`s, without a second rounding.

A tensor is [out_features, in_features] there; each row is cut into blocks that hold codes and scales together. Scales
are float16, and those of Q4_K and Q6_K are products of a block's float16 and a small integer: float32 holds them.

Source: ggml, ggml-common.h for the blocks and ggml-quants.c for what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fusionkit.errors import argument_error
from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array


class _Values(NamedTuple):
    """Of a block: codes [blocks, weights], scales and minimums [blocks, groups]."""

    codes: Array
    scales: Array
    minimums: Array | None = None


class _BlockType(NamedTuple):
    """weights, num_bytes: of a block."""

    weights: int
    num_bytes: int
    dtype: str
    group_size: int
    read: Callable[[Array], _Values]


def from_gguf(blocks: Array, type_name: str) -> QuantizedWeight:
    """The values that llama.cpp gives the tensor, bit by bit once they are rounded to float32.

    Args:
        blocks: [out_features, bytes of a row], uint8, as in the file.
        type_name: "Q8_0", "Q4_0", "Q4_1", "Q4_K" or "Q6_K".

    Returns:
        [in_features, out_features], in the linear layer's order.

    Raises:
        ValueError: the type is another one, blocks are no whole rows of it, or a scale in them is not finite.
    """
    if type_name not in _TYPES:
        advice = "Of other types make floats, by gguf.quants.dequantize, and give them to pack_weight"
        raise argument_error("from_gguf", "type_name", " or ".join(_TYPES), repr(type_name), advice=advice)
    kind = _TYPES[type_name]
    if blocks.dtype != "uint8" or blocks.ndim != 2 or blocks.size == 0 or blocks.shape[1] % kind.num_bytes:
        rule = f"[out_features, a multiple of {kind.num_bytes}] uint8 for {type_name}, and not empty"
        raise argument_error("from_gguf", "blocks", rule, f"{list(blocks.shape)} {blocks.dtype.name}")
    values = kind.read(np.ascontiguousarray(blocks).reshape(-1, kind.num_bytes))
    codes, scales = (each.reshape(len(blocks), -1).T for each in (values.codes, values.scales))
    minimums = None if values.minimums is None else values.minimums.reshape(len(blocks), -1).T
    return QuantizedWeight(codes, scales, minimums, kind.dtype, kind.group_size)


def _float16(block_bytes: Array) -> Array:
    """[blocks, 2 n bytes] as [blocks, n] in float32."""
    return np.ascontiguousarray(block_bytes).view(np.float16).astype(np.float32)


def _halves(block_bytes: Array, together: int) -> Array:
    """Codes of 4 bits: of each `together` bytes first all low halves, then all high ones."""
    groups = block_bytes.reshape(len(block_bytes), -1, 1, together)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(len(block_bytes), -1)


def _q8_0(blocks: Array) -> _Values:
    return _Values(blocks[:, 2:].view(np.int8), _float16(blocks[:, :2]))


def _q4_0(blocks: Array) -> _Values:
    return _Values(_halves(blocks[:, 2:], 16).view(np.int8) - np.int8(8), _float16(blocks[:, :2]))


def _q4_1(blocks: Array) -> _Values:
    return _Values(_halves(blocks[:, 4:], 16), _float16(blocks[:, :2]), _float16(blocks[:, 2:4]))


def _q4_k(blocks: Array) -> _Values:
    """8 groups of 32. Their 6-bit factors of scale and minimum: of the first four in the low 6 bits of 4 bytes each; of
    the others 4 bits in a byte for both, and the upper 2 above the first four's."""
    first, second, both = (blocks[:, begin : begin + 4] for begin in (4, 8, 12))
    factors = np.concatenate([first & 63, (both & 15) | (first >> 6 << 4)], axis=1)
    steps = np.concatenate([second & 63, (both >> 4) | (second >> 6 << 4)], axis=1)
    scales, minimums = _float16(blocks[:, :2]) * factors, -(_float16(blocks[:, 2:4]) * steps)
    return _Values(_halves(blocks[:, 16:], 32), scales, minimums)


def _q6_k(blocks: Array) -> _Values:
    """16 groups of 16. Each half has 64 bytes with the low 4 bits of its 128 codes, and 32 with their upper 2."""
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32) >> np.array([0, 4], np.uint8).reshape(2, 1, 1) & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    codes = low.reshape(-1, 2, 4, 32) | high << 4
    factors = blocks[:, 192:208].view(np.int8)
    return _Values(codes.view(np.int8).reshape(-1, 256) - np.int8(32), _float16(blocks[:, 208:]) * factors)


_TYPES = {
    "Q8_0": _BlockType(32, 34, "int8", 32, _q8_0),
    "Q4_0": _BlockType(32, 18, "int4", 32, _q4_0),
    "Q4_1": _BlockType(32, 20, "int4", 32, _q4_1),
    "Q4_K": _BlockType(256, 144, "int4", 32, _q4_k),
    "Q6_K": _BlockType(256, 210, "int8", 16, _q6_k),
}
