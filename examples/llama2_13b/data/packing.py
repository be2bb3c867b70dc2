"""Samples to rows of a batch: packed into rows of equal length, or one a row; and the arrays of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.data.samples import IGNORED, Sample

BUFFER = 500  # samples that greedy packing looks at together
Row = list[int]  # numbers of samples
Pack = Callable[[Sequence[int]], list[Row]]


def one_a_row(lengths: Sequence[int]) -> list[Row]:
    return [[number] for number in range(len(lengths))]


def pack_sequentially(lengths: Sequence[int], max_length: int) -> list[Row]:
    """Rows filled in the order given; a row is closed by the first sample that does not fit."""
    rows: list[Row] = []
    room = -1
    for number, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = max_length
        rows[-1].append(number)
        room -= length
    return rows


def pack_greedily(lengths: Sequence[int], max_length: int) -> list[Row]:
    """Of each BUFFER samples the longest first, into the row with the largest free space, or a new row if none fits."""
    rows: list[Row] = []
    for start in range(0, len(lengths), BUFFER):
        buffer = range(start, min(start + BUFFER, len(lengths)))
        opened: list[Row] = []
        room: list[int] = []
        for number in sorted(buffer, key=lambda n: -lengths[n]):
            if not opened or lengths[number] > max(room):
                opened.append([])
                room.append(max_length)
            roomiest = room.index(max(room))
            opened[roomiest].append(number)
            room[roomiest] -= lengths[number]
        rows += opened
    return rows


@dataclass(frozen=True)
class Batch:
    """The arrays of a micro-batch. Padding at a row's end is a document of its own, without targets.

    Args:
        input_ids, position_ids: [batch_size, length] int64; positions start at 0 in every document.
        labels: as Sample's, [batch_size, length] int64.
        startend_row_indices: [batch_size, 1, length, 1] int32: the row where each token's document ends.
        document_lengths: of every document without padding.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    startend_row_indices: NDArray[np.int32]
    document_lengths: list[int]

    @property
    def num_targets(self) -> int:
        return int((self.labels != IGNORED).sum())


def collate(
    rows: Sequence[Sequence[Sample]], pad_token_id: int | None, length: int | None = None, multiple: int = 1
) -> Batch:
    """Rows of samples as arrays of `length` columns, by default as many as the longest row has; a multiple of them.

    No result depends on what fills the rest of a row: without a padding token it is 0.
    """
    length = length or max(sum(map(len, row)) for row in rows)
    length += -length % multiple
    batch = Batch(
        np.full((len(rows), length), pad_token_id or 0),
        np.full((len(rows), length), IGNORED),
        np.zeros((len(rows), length), np.int64),
        np.full((len(rows), 1, length, 1), length, np.int32),
        [len(sample) for row in rows for sample in row],
    )
    for index, row in enumerate(rows):
        for columns, sample in _place(row):
            batch.input_ids[index, columns] = sample.input_ids
            batch.labels[index, columns] = sample.labels
            batch.position_ids[index, columns] = np.arange(len(sample))
            batch.startend_row_indices[index, 0, columns, 0] = columns.stop
    return batch


def _place(row: Sequence[Sample]) -> Iterator[tuple[slice, Sample]]:
    start = 0
    for sample in row:
        yield slice(start, start + len(sample)), sample
        start += len(sample)
