"""The file of an exported program's parameters, read without loading it: a record for each, in the order of names.

A record is a header, a description of dtype and sizes, and the elements. Source: Paddle 3.3,
paddle/fluid/framework/lod_tensor.cc, SerializeToStream; framework.proto, VarType.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fusionkit.frameworks.numpy import DTYPES
from fusionkit.spec import Array

_HEADER = struct.Struct("<IQIi")  # version, levels of detail, version of the tensor, length of the description
_DTYPES = {2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64", 20: "uint8", 21: "int8", 22: "bfloat16"}
_DTYPE_FIELD, _SIZE_FIELD = 1 << 3, 2 << 3  # of the description, both of protobuf's type varint


@dataclass(frozen=True)
class Parameter:
    """One record, which stays in the file until it is asked for.

    Args:
        file: that holds it.
        begin, elements_at: where the record and its elements begin.
        dtype, shape: of the elements.
    """

    file: Path
    begin: int
    elements_at: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.elements_at + math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def record(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            return stream.read(self.end - self.begin)

    def elements(self) -> Array:
        count = math.prod(self.shape)
        return np.fromfile(self.file, DTYPES[self.dtype], count, offset=self.elements_at).reshape(self.shape)


def read(file: Path, names: Iterable[str]) -> dict[str, Parameter]:
    """The parameters of these names, which must be all that the file holds.

    Raises:
        ValueError: the file holds another number of them, or a record that is none of Paddle 3.3.
    """
    ordered = sorted(names)
    try:
        with file.open("rb") as stream:
            found = dict(zip(ordered, _records(file, stream), strict=True))
    except (ValueError, KeyError, struct.error) as error:
        rule = f"records of {len(ordered)} parameters, got {error}"
        raise ValueError(f"{file}: must be {rule}. Export it again") from None
    return found


def write(file: Path, parameters: dict[str, Parameter]) -> None:
    """A file of these alone."""
    with file.open("wb") as stream:
        for name in sorted(parameters):
            stream.write(parameters[name].record())


def _records(file: Path, stream: BinaryIO) -> Iterator[Parameter]:
    while header := stream.read(_HEADER.size):
        _, levels, _, length = _HEADER.unpack(header)
        if levels:
            raise ValueError("levels of detail")
        dtype, shape = _description(stream.read(length))
        at = stream.tell()
        found = Parameter(file, at - length - _HEADER.size, at, dtype, shape)
        yield found
        stream.seek(found.end)


def _description(encoded: bytes) -> tuple[str, tuple[int, ...]]:
    numbers = list(_varints(encoded))
    fields = list(zip(numbers[::2], numbers[1::2], strict=True))
    dtype = next(number for key, number in fields if key == _DTYPE_FIELD)
    return _DTYPES[dtype], tuple(number for key, number in fields if key == _SIZE_FIELD)


def _varints(encoded: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in encoded:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
