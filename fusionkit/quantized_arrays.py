"""A quantized weight as the arrays that a file or an exported program holds. No backend's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusionkit.errors import argument_error
from fusionkit.frameworks import framework_of
from fusionkit.quantized_weight import QuantizedWeight, require_activations, require_format
from fusionkit.spec import HELD_AS_ARRAYS, ROUNDING_ARRAYS, Array, TensorSpec


@dataclass(frozen=True, eq=False)
class QuantizedArrays:
    """What `fused_linear` takes in place of a weight where a program is traced: the program then holds these arrays.

    A loader that packs for its device makes one pack of them. Elsewhere each call makes floats of all codes.

    Args:
        codes: uint8. int8: [in_features, out_features]. int4: [ceil(in_features / 2), out_features], the code of row 2i
            in the low four bits of row i and that of row 2i + 1 in the high ones. Without minimums in two's complement.
        scales: [groups, out_features], float32.
        minimums: as scales, or None.
        dtype, group_size, activations: as of `QuantizedWeight`.
        in_features: of the weight.

    Raises:
        ValueError: dtype, group_size or activations is not as above.
    """

    codes: Any = field(repr=False)
    scales: Any = field(repr=False)
    minimums: Any = field(repr=False)
    dtype: str
    in_features: int
    group_size: int | None = None
    activations: str | None = None
    backend: str = field(default=HELD_AS_ARRAYS, init=False, repr=False)

    def __post_init__(self) -> None:
        require_format(self.dtype, self.group_size)
        require_activations(self.activations)
        if self.activations is not None:
            object.__setattr__(self, "backend", ROUNDING_ARRAYS)

    @staticmethod
    def of(weight: QuantizedWeight) -> QuantizedArrays:
        """NumPy arrays; those of `weight` where they are the same."""
        codes = weight.codes.view(np.uint8)
        stored = codes if weight.bits == 8 else _in_pairs(codes)
        how = weight.dtype, weight.shape[0], weight.group_size, weight.activations
        return QuantizedArrays(stored, weight.scales, weight.minimums, *how)

    @property
    def shape(self) -> tuple[int, int]:
        return self.in_features, int(self.codes.shape[1])

    @property
    def symmetric(self) -> bool:
        return self.minimums is None

    def describe_packed(self) -> TensorSpec:
        """What dispatch asks of it, as of a tensor."""
        framework = framework_of(type(self.codes))
        device = None if framework is None else framework.describe(self.codes).device
        return TensorSpec(self.shape, self.dtype, device, packed_by=self.backend, activations=self.activations)

    def weight(self) -> QuantizedWeight:
        """The weight, of NumPy arrays.

        Raises:
            ValueError: the arrays are not as they should be.
        """
        codes = self.codes if self.dtype == "int8" else _out_of_pairs(self._rows_there(), self.in_features)
        if self.symmetric:
            codes = codes.view(np.int8) if self.dtype == "int8" else ((codes ^ 8).view(np.int8) - np.int8(8))
        return QuantizedWeight(codes, self.scales, self.minimums, self.dtype, self.group_size, self.activations)

    def _rows_there(self) -> Array:
        rows = -(-self.in_features // 2)
        if self.codes.shape[0] != rows:
            rule = f"{rows} rows of two codes each, for in_features = {self.in_features}"
            raise argument_error("QuantizedArrays", "codes", rule, self.codes.shape[0])
        codes: Array = self.codes
        return codes


def _in_pairs(codes: Array) -> Array:
    padded = np.pad(codes, ((0, len(codes) % 2), (0, 0)))
    return (padded[::2] & 15) | (padded[1::2] << 4)


def _out_of_pairs(pairs: Array, in_features: int) -> Array:
    codes = np.stack([pairs & 15, pairs >> 4], axis=1)
    return codes.reshape(2 * len(pairs), -1)[:in_features]
