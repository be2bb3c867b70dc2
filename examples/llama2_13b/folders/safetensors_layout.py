"""Where each tensor is in a safetensors file, before any value is known and after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.llama2_13b.folders.stored_dtypes import CODES, NUMPY

ORDER = ("F64", "F32", "BF16", "F16")  # of dtypes in a file, as the library has it


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype in safetensors' words, its shape, and where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def kind(self) -> np.dtype[Any]:
        """As NumPy has it."""
        return (NUMPY | CODES)[self.dtype]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.kind.itemsize

    def runs(self, place: tuple[slice, ...]) -> tuple[int, int, int, int]:
        """Where a part of the tensor stands: (offset of the first run, bytes of a run, bytes from run to run, runs).

        Whole rows are one run. Parts of rows are a run each.
        """
        row = math.prod(self.shape[1:]) * self.kind.itemsize
        rows = place[0].stop - place[0].start
        first = self.offset + place[0].start * row
        if len(place) == 1 or (place[1].start, place[1].stop) == (0, self.shape[1]):
            return first, rows * row, rows * row, 1
        item = self.kind.itemsize
        return first + place[1].start * item, (place[1].stop - place[1].start) * item, row, rows


class Layout:
    """A file's header, the places of its tensors and its length. They are those of the safetensors library."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        wide_first = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the layout that this names
        end = 0
        for name in wide_first:
            begin, end = end, end + tensors[name].num_bytes
            header[name] = {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        start = len(self.header)
        self.tensors = {
            name: Stored(tensors[name].dtype, tensors[name].shape, start + header[name]["data_offsets"][0])
            for name in wide_first
        }
        self.length = start + end


def read_layout(path: Path) -> dict[str, Stored]:
    """The places of a file's tensors, by its header, which `safe_open` has found to be one."""
    with path.open("rb") as file:
        start = 8 + (length := int.from_bytes(file.read(8), "little"))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(one["dtype"], tuple(one["shape"]), start + one["data_offsets"][0]) for name, one in header.items()
    }
