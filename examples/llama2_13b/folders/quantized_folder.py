"""A model folder whose matrices are in 8 or 4 bits: safetensors with codes and scales, see quantized_tensors.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders import quantized_tensors, safetensors_folder
from examples.llama2_13b.folders.config import LlamaConfig, read_fields
from examples.llama2_13b.folders.layout import Table, elements, layout
from examples.llama2_13b.folders.quantization import FIELD, Format, Quantization, of
from examples.llama2_13b.io import atomic
from fusionkit.quantized_weight import QuantizedWeight

Array = NDArray[Any]
Value = Array | QuantizedWeight
# A file is held while it is written. Its bytes are known when all its codes are; these are int8's in groups of 16.
FILE_BYTES, BYTES_A_WEIGHT = 1_000_000_000, 1.25
ROWS_AT_A_TIME = 1 << 10  # that are turned into floats


def matrices(table: Table) -> dict[str, tuple[int, ...]]:
    """The shape on disk of every tensor that can be in codes."""
    parts = [part for parameter in table.values() for part in parameter.parts]
    return {part.name: part.shape for part in parts if len(part.shape) == 2}


def quantization_of(folder: Path) -> Quantization | None:
    """What config.json says; None of a model in floats."""
    path = folder / "config.json"
    return of(read_fields(path), str(path)) if path.exists() else None


class QuantizedFolder:
    """What `safetensors_folder.Reader` is for a folder in floats. `read` makes floats of the codes.

    Raises:
        FileNotFoundError, ValueError: as that.
    """

    def __init__(self, folder: Path, quantization: Quantization) -> None:
        self._files = safetensors_folder.Reader(folder, "model")
        self._shapes = matrices(layout(LlamaConfig.from_json(folder / "config.json")))
        forms = {name: quantization.of(name) for name in self._shapes}
        self._forms = {name: form for name, form in forms.items() if form is not None}
        self.index, self.unread, self.digest = self._files.index, self._files.unread, self._files.digest

    def has(self, name: str) -> bool:
        return name in self._forms or self._files.has(name)

    def is_in_out(self, name: str) -> bool:
        return False

    def dtype(self, name: str) -> str:
        """That a saved model has, in safetensors' words."""
        return "F32" if name in self._forms else self._files.dtype(name)

    def check(self, shapes: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool] = lambda name: False) -> None:
        """Require exactly these tensors, those of config.json in codes."""
        wanted = dict(shapes)
        dtypes: dict[str, tuple[str, ...]] = {}
        for name, form in self._forms.items():
            wanted |= quantized_tensors.shapes(name, wanted.pop(name), form)
            dtypes |= quantized_tensors.dtypes(name, form)
        self._files.check(wanted, ignored, dtypes)

    def read(self, name: str, part: tuple[slice, ...]) -> NDArray[np.float32]:
        """A part of the tensor in float32, a slice for each axis."""
        if name not in self._forms:
            return self._files.read(name, part)
        rows, columns = part
        values = np.empty([one.stop - one.start for one in part], np.float32)
        for begin in range(rows.start, rows.stop, ROWS_AT_A_TIME):
            stop = min(begin + ROWS_AT_A_TIME, rows.stop)
            values[begin - rows.start : stop - rows.start] = self._weight(name, begin, stop).dequantize().T[:, columns]
        return values

    def quantized(self, name: str) -> QuantizedWeight | None:
        """A matrix as it is stored, [in_features, out_features]; None if it is in floats."""
        return self._weight(name, 0, self._shapes[name][0]) if name in self._forms else None

    def _weight(self, name: str, begin: int, stop: int) -> QuantizedWeight:
        in_features, form = self._shapes[name][1], self._forms[name]
        held = quantized_tensors.shapes(name, (stop - begin, in_features), form)

        def read(tensor: str) -> Array:
            return self._files.read_as_stored(tensor, (slice(begin, stop), slice(0, held[tensor][1])))

        return quantized_tensors.weight(name, form, in_features, read)


def write(folder: Path, config: LlamaConfig, value_of: Callable[[str], Value]) -> None:
    """Write the weights and `config.json`; no more than a file is held.

    Args:
        value_of: a tensor by its name: codes, [in_features, out_features], or floats as on disk.

    Raises:
        ValueError: no tensor is in codes.
        OSError: the disk is full or the folder cannot be written.
    """
    sizes = {name: math.ceil(BYTES_A_WEIGHT * count) for name, count in elements(layout(config)).items()}
    forms: dict[str, Format | None] = {}
    held: dict[str, list[str]] = {}  # the tensors that a matrix is

    def values(names: list[str]) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        for name in names:
            value = value_of(name)
            if isinstance(value, QuantizedWeight):
                forms[name], stored = Format.of(value), quantized_tensors.stored(name, value)
            else:
                stored = {name: value}
                if value.ndim == 2:
                    forms[name] = None
            held[name] = list(stored)
            tensors |= stored
        return tensors

    files = safetensors_folder.write_shards(folder, "model", sizes, values, FILE_BYTES)
    fields = {**config.to_dict(), FIELD: Quantization.found(forms).to_dict()}
    atomic.write_file(folder / "config.json", (json.dumps(fields, indent=2) + "\n").encode())
    weight_map = {tensor: file for name, file in files.items() for tensor in held[name]}
    safetensors_folder.write_index(folder, "model", weight_map)
