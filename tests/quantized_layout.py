"""A quantized weight in the bytes that the cpu backend reads, by NumPy: csrc/kernels/quantized_product.h says how they
lie. The backend's own packer is held against it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array

PANEL_COLS = 64  # kQuantizedCols
_PANELS_AT_A_TIME = 16
_ALIGNMENT = 64
_HEADER = struct.Struct("<8sIBBBxqqqQ16x")  # Header of csrc/quantized_weight.cc
_MAGIC, _FORMAT = b"FKQUANTS", 1


def quantized_panels(weight: QuantizedWeight) -> Array:
    """The packed bytes, uint8, aligned to 64."""
    in_features, out_features = weight.shape
    scale_dtype = np.dtype(weight.scale_dtype)
    group_size = weight.group_size or max(in_features, 1)
    depths = [min(group_size, in_features - k) for k in range(0, in_features, group_size)]
    groups = [_group_bytes(weight, depth, scale_dtype.itemsize) for depth in depths]
    num_panels = -(-out_features // PANEL_COLS)
    num_bytes = _HEADER.size + num_panels * sum(groups)
    packed = _aligned(num_bytes)
    flags = weight.bits, not weight.symmetric, scale_dtype.itemsize
    header = _HEADER.pack(_MAGIC, _FORMAT, *flags, in_features, out_features, group_size, num_bytes)
    packed[: _HEADER.size] = np.frombuffer(header, np.uint8)
    panels = packed[_HEADER.size :].reshape(num_panels, sum(groups))
    for begin in range(0, num_panels, _PANELS_AT_A_TIME):
        _fill(panels[begin : begin + _PANELS_AT_A_TIME], weight, begin * PANEL_COLS, groups, scale_dtype)
    return packed


def _group_bytes(weight: QuantizedWeight, depth: int, itemsize: int) -> int:
    scales = PANEL_COLS * itemsize * (1 if weight.symmetric else 2)
    return scales + -(-depth * weight.bits // 32) * PANEL_COLS * 4


def _aligned(num_bytes: int) -> Array:
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + num_bytes]


def _fill(panels: Array, weight: QuantizedWeight, col: int, groups: list[int], scale_dtype: Any) -> None:
    """Panels of the columns from `col` on: whole groups at once, and a shorter last one for itself. groups: bytes."""
    whole = weight.shape[0] // (weight.group_size or max(weight.shape[0], 1))
    for first, count in ((0, whole), (whole, len(groups) - whole)):
        if count:
            area = panels[:, first * groups[0] :][:, : count * groups[first]]
            _fill_groups(area.reshape(len(panels), count, -1), weight, col, first, scale_dtype)


def _fill_groups(out: Array, weight: QuantizedWeight, col: int, first: int, scale_dtype: Any) -> None:
    """out: [panels, groups, bytes], of the weight's groups from `first` on."""
    num_panels, count, _ = out.shape
    group_size = weight.group_size or weight.shape[0]
    parameters = [each for each in (weight.scales, weight.minimums) if each is not None]
    parts = [_by_panel(each[first : first + count], num_panels, col).astype(scale_dtype) for each in parameters]
    codes = weight.codes[first * group_size : (first + count) * group_size].view(np.uint8)
    parts.append(_words(_by_panel(codes, num_panels, col), count, weight.bits))
    end = 0
    for part in parts:
        part_bytes = np.ascontiguousarray(part).view(np.uint8).reshape(num_panels, count, -1)
        out[:, :, end : end + part_bytes.shape[2]] = part_bytes
        end += part_bytes.shape[2]


def _by_panel(rows: Array, num_panels: int, col: int) -> Array:
    """[rows, columns] as [panels, rows, 64] from a column on, with zeros past the last one."""
    columns = rows[:, col : col + num_panels * PANEL_COLS]
    missing = num_panels * PANEL_COLS - columns.shape[1]
    padded = np.pad(columns, ((0, 0), (0, missing)))
    return padded.reshape(len(rows), num_panels, PANEL_COLS).swapaxes(0, 1)


def _words(codes: Array, count: int, bits: int) -> Array:
    """[panels, count * k, 64] codes as [panels, count, words, 64, 4] bytes, each group padded to whole words."""
    together = 32 // bits
    depth = codes.shape[1] // count
    grouped = codes.reshape(len(codes), count, depth, PANEL_COLS)
    padded = np.pad(grouped, ((0, 0), (0, 0), (0, -depth % together), (0, 0)))
    words = padded.reshape(len(codes), count, -1, together, PANEL_COLS).swapaxes(3, 4)
    if bits == 8:
        return words
    return (words[..., :4] & 15) | (words[..., 4:] << 4)
