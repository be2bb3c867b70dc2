"""A matrix in 8 or 4 bits as tensors of a safetensors file.

Of `NAME`, [out_features, in_features]:
    NAME.codes      [out_features, in_features] I8, or U8 with minimums. In 4 bits [out_features, ceil(in_features / 2)]
                    U8: code 2 i in the low half of byte i, code 2 i + 1 in the high one, two's complement if symmetric.
    NAME.scales     [out_features, groups] F16 if that holds each scale and minimum as it is, else F32.
    NAME.minimums   the same of code 0's values; not there if symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders.quantization import Format
from fusionkit.quantized_weight import QuantizedWeight, num_groups

Array = NDArray[Any]
SCALE_DTYPES = ("F16", "F32")


def names(name: str, form: Format) -> dict[str, str]:
    """Of the tensors, by what they hold."""
    kinds = ("codes", "scales") if form.symmetric else ("codes", "scales", "minimums")
    return {kind: f"{name}.{kind}" for kind in kinds}


def shapes(name: str, shape: tuple[int, ...], form: Format) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a matrix with this shape on disk."""
    rows, columns = shape
    of_codes = rows, -(-columns // 2) if form.dtype == "int4" else columns
    of_scales = rows, num_groups(columns, form.group_size)
    return {each: of_codes if kind == "codes" else of_scales for kind, each in names(name, form).items()}


def dtypes(name: str, form: Format) -> dict[str, tuple[str, ...]]:
    """That each may have."""
    codes = ("I8",) if (form.dtype, form.symmetric) == ("int8", True) else ("U8",)
    return {each: codes if kind == "codes" else SCALE_DTYPES for kind, each in names(name, form).items()}


def stored(name: str, weight: QuantizedWeight) -> dict[str, Array]:
    """The tensors of a weight."""
    codes = np.ascontiguousarray(weight.codes.T)
    tensors = {f"{name}.codes": _two_a_byte(codes) if weight.dtype == "int4" else codes}
    for kind, values in (("scales", weight.scales), ("minimums", weight.minimums)):
        if values is not None:
            tensors[f"{name}.{kind}"] = np.ascontiguousarray(values.T.astype(weight.scale_dtype))
    return tensors


def weight(name: str, form: Format, in_features: int, read: Callable[[str], Array]) -> QuantizedWeight:
    """The weight whose tensors `read` gives, all of its rows or some."""
    found: Mapping[str, Array] = {kind: read(each) for kind, each in names(name, form).items()}
    codes = found["codes"]
    if form.dtype == "int4":
        codes = _one_a_byte(codes, form.symmetric)[:, :in_features]
    scales, minimums = (found[kind].T.astype(np.float32) if kind in found else None for kind in ("scales", "minimums"))
    assert scales is not None
    return QuantizedWeight(codes.T, scales, minimums, form.dtype, form.group_size)


def _two_a_byte(codes: Array) -> Array:
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    halves = codes.view(np.uint8) & 15
    return halves[:, ::2] | halves[:, 1::2] << 4


def _one_a_byte(packed: Array, symmetric: bool) -> Array:
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    codes[:, ::2], codes[:, 1::2] = packed & 15, packed >> 4
    return (codes ^ 8).view(np.int8) - np.int8(8) if symmetric else codes
