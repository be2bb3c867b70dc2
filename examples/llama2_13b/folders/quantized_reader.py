"""A model's tensors in 8 or 4 bits, whatever it is stored in: codes as they are, floats rounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.layout import Parameter, Table
from examples.llama2_13b.folders.quantization import Format, Quantization
from fusionkit.quantized_weight import QuantizedWeight, quantize
from fusionkit.scale_search import quantize_by_search

Array = NDArray[Any]


class QuantizedReader:
    """Reads one tensor at a time.

    Args:
        source: a model folder or a GGUF file.
        table: of the model's parameters.
        rounding: of matrices in floats; None: they stay so.
        as_stored: matrices in codes keep them, whatever `rounding` says. False: their values are rounded again.

    Raises:
        FileNotFoundError, ValueError: see `model_folder.weights_of`.
    """

    def __init__(self, source: str | Path, table: Table, rounding: Quantization | None, as_stored: bool = True) -> None:
        self._weights, self._table = checkpoint.Reader(source, table), table
        self._rounding, self._as_stored = rounding, as_stored
        self._counts: Counter[str] = Counter()

    def tensor(self, name: str) -> Array | QuantizedWeight:
        """By its name in the folder: codes, [in_features, out_features], or float32 as on disk."""
        value, how = self._read(name)
        self._counts[how] += 1
        return value

    def _read(self, name: str) -> tuple[Array | QuantizedWeight, str]:
        """And what became of it."""
        stored = self._weights.quantized(name) if self._as_stored else None
        if stored is not None:
            return stored, f"in {Format.of(stored)}, as stored"
        floats = self._weights.tensor(name)
        if floats.ndim == 1:
            return floats, "vectors"
        form = self._rounding.of(name) if self._rounding else None
        if form is None:
            return floats, "in floats"
        return rounded(floats.T, form), f"rounded to {form}"

    def parameter(self, name: str) -> Array | list[QuantizedWeight]:
        """A row of the table as the model holds it: floats, or the codes of its columns from left to right.

        Neighbours of the same format are one. If a part is in floats and stays so, all of the row is.
        """
        row: Parameter = self._table[name]
        if len(row.parts[0].shape) == 1:
            return self._weights.read(name)
        parts, how = zip(*(self._read(part.name) for part in row.parts), strict=True)
        codes = [part for part in parts if isinstance(part, QuantizedWeight)]
        if len(codes) == len(parts):
            self._counts.update(how)
            return side_by_side(codes)
        self._counts[f"in floats: {name}"] += len(parts)
        return self._weights.read(name)

    def floats(self, name: str) -> Array:
        """A row of the table in float32, whatever it is stored in."""
        return self._weights.read(name)

    def dtypes(self) -> dict[str, str]:
        """Of every tensor, by its name in the table."""
        return self._weights.dtypes()

    @property
    def summary(self) -> str:
        """What was read, in a line."""
        return f"weights: {'; '.join(f'{count} {how}' for how, count in self._counts.items())}"


def rounded(weight: Array, form: Format) -> QuantizedWeight:
    """A matrix, [in_features, out_features]. Where codes are fewest, the scales are searched for."""
    if form.dtype == "int4" and form.symmetric:
        return quantize_by_search(weight, form.dtype, form.group_size)
    return quantize(weight, form.dtype, form.group_size, form.symmetric)


def side_by_side(weights: list[QuantizedWeight]) -> list[QuantizedWeight]:
    """The same columns with neighbours of one format joined, which rounds nothing."""
    joined: list[QuantizedWeight] = []
    for weight in weights:
        if joined and Format.of(joined[-1]) == Format.of(weight):
            weight = _joined(joined.pop(), weight)
        joined.append(weight)
    return joined


def _joined(left: QuantizedWeight, right: QuantizedWeight) -> QuantizedWeight:
    def both(name: str) -> Array:
        return np.concatenate([getattr(left, name), getattr(right, name)], axis=1)

    minimums = None if left.symmetric else both("minimums")
    return QuantizedWeight(both("codes"), both("scales"), minimums, left.dtype, left.group_size)
