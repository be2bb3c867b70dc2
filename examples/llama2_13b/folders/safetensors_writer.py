"""Safetensors files that ranks fill together, each with its own pieces."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders.safetensors_layout import Layout
from examples.llama2_13b.io import crc32
from examples.llama2_13b.parallel.writers import Writers

Array = NDArray[Any]
BLOCK = 1 << 24  # bytes that are summed and written at once: they stay in the processor's cache


@dataclass(frozen=True)
class Piece:
    """What a rank has of a tensor: the value as on disk, and where it stands in the whole."""

    tensor: str
    value: Array
    place: tuple[slice, ...]


class Files:
    """The files of one set of tensors. All writers make this, `write` and `finish` alike, the first makes the files.

    Args:
        folder: of the files.
        names: of the files, in order.
        layouts: of each.
        writers: who fill them.

    Raises:
        OSError: the disk is full or the folder cannot be written, on all ranks; no file stays behind.
    """

    def __init__(self, folder: Path, names: list[str], layouts: list[Layout], writers: Writers) -> None:
        self._folder, self.names, self._layouts, self._writers = folder, names, layouts, writers
        self._file_of = {tensor: number for number, layout in enumerate(layouts) for tensor in layout.tensors}
        self._sums = [0] * len(names)  # see crc32
        try:
            writers.together(
                self._make_all if writers.is_first else None, folder
            )  # nobody opens a file before it is there
        except BaseException:
            self.discard()
            raise

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor -> file."""
        return {tensor: self.names[number] for tensor, number in self._file_of.items()}

    def _make_all(self) -> None:
        for number in range(len(self.names)):
            self._make(number)

    def _make(self, number: int) -> None:
        layout = self._layouts[number]
        with _naming(self._folder / self.names[number]) as path, path.open("xb") as file:
            file.write(layout.header)
            file.truncate(layout.length)
        self._sums[number] ^= crc32.of_part(layout.header, layout.length - len(layout.header))

    def write(self, pieces: Iterable[Piece]) -> None:
        """This rank's own pieces; what it has written is on the disk when this returns.

        Raises:
            OSError: as for the files.
        """
        opened: dict[int, int] = {}
        try:
            for piece in pieces:
                number = self._file_of[piece.tensor]
                with _naming(self._folder / self.names[number]) as path:
                    if number not in opened:
                        opened[number] = os.open(path, os.O_WRONLY)
                    self._sums[number] ^= _write(opened[number], self._layouts[number], piece)
            for number, descriptor in opened.items():
                with _naming(self._folder / self.names[number]):
                    os.fsync(descriptor)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def finish(self) -> dict[str, int]:
        """The CRC-32 of every file, when all ranks have written."""
        totals = np.bitwise_xor.reduce(self._writers.gather(self._sums), axis=0)
        lengths = [layout.length for layout in self._layouts]
        return {
            name: crc32.of_file(int(total), length)
            for name, total, length in zip(self.names, totals, lengths, strict=True)
        }

    def discard(self) -> None:
        """The first does it: another rank may fail when the first has made these files the folder's."""
        for name in self.names if self._writers.is_first else ():
            (self._folder / name).unlink(missing_ok=True)


class _naming:
    """What the system cannot write is named."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            reason = f"cannot be written ({error.strerror}). What was saved before is still whole"
            raise OSError(error.errno, f"{self._path}: {reason}") from None


def _write(descriptor: int, layout: Layout, piece: Piece) -> int:
    """Write a piece, and return what it adds to the file's sum."""
    first, num_bytes, step, count = layout.tensors[piece.tensor].runs(piece.place)
    content = np.ascontiguousarray(piece.value).reshape(-1).view(np.uint8).data
    if len(content) != num_bytes * count:
        raise ValueError(f"{piece.tensor}: a piece must be {num_bytes * count} bytes, got {len(content)}")
    total, behind = 0, layout.length - first - (count - 1) * step - num_bytes
    if count == 1:
        for start, block in _blocks(content):
            total = crc32.moved(total, len(block)) ^ crc32.of_part(block)
            _write_all(descriptor, block, first + start)
        return crc32.moved(total, behind)
    t0, t1, t2, t3 = crc32.tables(step)
    for number in range(count):
        run = content[number * num_bytes : (number + 1) * num_bytes]
        total = t0[total & 255] ^ t1[total >> 8 & 255] ^ t2[total >> 16 & 255] ^ t3[total >> 24] ^ crc32.of_part(run)
        _write_all(descriptor, run, first + number * step)
    return crc32.moved(total, behind)


def _blocks(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    for start in range(0, len(content), BLOCK):
        yield start, content[start : start + BLOCK]


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:  # the system may write less than asked for
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
