"""A quantized weight in the bytes that the cpu backend reads, by NumPy: csrc/kernels/quantized_product.h says how they
lie. The backend's own packer is held against it."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np

from fusionkit.quantized_weight import QuantizedWeight
from fusionkit.spec import Array

PANEL_COLS = 64  # kQuantizedCols
_PANELS_AT_A_TIME = 16
_ALIGNMENT = 64
_HEADER = struct.Struct("<8sIBBBBqqqQ16x")  # Header of csrc/quantized_weight.cc
_MAGIC, _FORMAT = b"FKQUANTS", 1


def quantized_panels(weight: QuantizedWeight) -> Array:
    """The packed bytes, uint8, aligned to 64."""
    in_features, out_features = weight.shape
    units, parameters = _scales(weight)
    itemsize = parameters[0].itemsize
    group_size = weight.group_size or max(in_features, 1)
    depths = [min(group_size, in_features - k) for k in range(0, in_features, group_size)]
    groups = [_group_bytes(weight, depth, itemsize) for depth in depths]
    num_panels = -(-out_features // PANEL_COLS)
    of_units = len(units) * PANEL_COLS * 4
    num_bytes = _HEADER.size + num_panels * (of_units + sum(groups))
    packed = _aligned(num_bytes)
    flags = weight.bits, not weight.symmetric, itemsize, weight.activations is not None
    header = _HEADER.pack(_MAGIC, _FORMAT, *flags, in_features, out_features, group_size, num_bytes)
    packed[: _HEADER.size] = np.frombuffer(header, np.uint8)
    panels = packed[_HEADER.size :].reshape(num_panels, of_units + sum(groups))
    panels[:, :of_units] = np.ascontiguousarray(_by_panel(units, num_panels, 0)).view(np.uint8).reshape(num_panels, -1)
    for begin in range(0, num_panels, _PANELS_AT_A_TIME):
        part = panels[begin : begin + _PANELS_AT_A_TIME, of_units:]
        _fill(part, weight, begin * PANEL_COLS, groups, parameters)
    return packed


def _scales(weight: QuantizedWeight) -> tuple[Array, list[Array]]:
    """(units [blocks * parameters, out_features], scales and minimums as the groups have them): without units, or in
    two levels, where each is an int8 times its block's unit."""
    given = [each for each in (weight.scales, weight.minimums) if each is not None]
    size = weight.group_size or 256
    found = [_in_levels(each, 256 // size) for each in given] if size < min(weight.shape[0], 256) else [None]
    if weight.scale_dtype == "float16" or None in found:
        return np.zeros((0, weight.shape[1]), np.float32), [each.astype(weight.scale_dtype) for each in given]
    units, factors = zip(*found, strict=True)
    return np.stack(units, axis=1).reshape(-1, weight.shape[1]), list(factors)


def _in_levels(values: Array, per_block: int) -> tuple[Array, Array] | None:
    """(units [blocks, columns], factors [groups, columns]) of float32 values; None: there are none of 8 bits."""
    units = np.zeros((-(-len(values) // per_block), values.shape[1]), np.float32)
    factors = np.zeros(values.shape, np.int8)
    for block, column in np.ndindex(units.shape):
        rows = slice(block * per_block, (block + 1) * per_block)
        wholes = [int(Fraction(float(value)) * 2**149) for value in values[rows, column]]
        unit = math.gcd(*wholes)
        if 128 * unit in wholes:
            unit = -unit
        parts = [whole // unit if unit else 0 for whole in wholes]
        if max(parts) > 127 or min(parts) < -128 or 0 < abs(unit) < 2**23:  # the last: subnormal
            return None
        units[block, column], factors[rows, column] = unit / 2**149, parts
    return units, factors


def _group_bytes(weight: QuantizedWeight, depth: int, itemsize: int) -> int:
    scales = PANEL_COLS * itemsize * (1 if weight.symmetric else 2)
    return scales + -(-depth * weight.bits // 32) * PANEL_COLS * 4


def _aligned(num_bytes: int) -> Array:
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + num_bytes]


def _fill(panels: Array, weight: QuantizedWeight, col: int, groups: list[int], parameters: list[Array]) -> None:
    """Panels of the columns from `col` on: whole groups at once, and a shorter last one for itself. groups: bytes."""
    whole = weight.shape[0] // (weight.group_size or max(weight.shape[0], 1))
    for first, count in ((0, whole), (whole, len(groups) - whole)):
        if count:
            area = panels[:, first * groups[0] :][:, : count * groups[first]]
            _fill_groups(area.reshape(len(panels), count, -1), weight, col, first, parameters)


def _fill_groups(out: Array, weight: QuantizedWeight, col: int, first: int, parameters: list[Array]) -> None:
    """out: [panels, groups, bytes], of the weight's groups from `first` on."""
    num_panels, count, _ = out.shape
    group_size = weight.group_size or weight.shape[0]
    parts = [_by_panel(each[first : first + count], num_panels, col) for each in parameters]
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
