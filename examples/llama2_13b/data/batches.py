"""Samples as the micro-batches of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examples.llama2_13b.data.order import Order, chunks
from examples.llama2_13b.data.packing import Batch, Pack, Row, collate
from examples.llama2_13b.data.samples import Sample


@dataclass(frozen=True)
class Batches:
    """What a training loop reads.

    Args:
        samples: all of them.
        pack: their lengths to rows.
        length: columns of every row; None for as many as the longest row of a micro-batch has.
        pad_token_id: fills what a row leaves free; None without a padding token.
    """

    samples: Sequence[Sample]
    pack: Pack
    length: int | None = None
    pad_token_id: int | None = None

    def order(self, rows_per_step: int, seed: int) -> Order:
        return Order(self._lengths(), self.pack, rows_per_step, seed)

    def rows(self) -> list[Row]:
        """All rows, in the samples' order."""
        return self.pack(self._lengths())

    def of(self, rows: list[Row], batch_size: int, multiple: int) -> list[Batch]:
        """Rows as micro-batches of `batch_size` rows, whose length is a multiple."""
        return [
            collate(chunk, self.samples, self.pad_token_id, self.length, multiple) for chunk in chunks(rows, batch_size)
        ]

    def _lengths(self) -> list[int]:
        return [len(sample) for sample in self.samples]
