"""Samples as the micro-batches of steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from examples.llama2_13b.data.batches import chunks
from examples.llama2_13b.data.packing import Batch, Pack, Row, collate
from examples.llama2_13b.data.samples import Sample


@dataclass(frozen=True)
class SampleBatches:
    """Samples in memory; a row is the numbers of those that share it.

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

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def longest(self) -> int:
        return self.length or max(map(len, self.samples), default=0)

    def rows(self) -> list[Row]:
        return self.pack([len(sample) for sample in self.samples])

    def shuffled(self, seed: int, epoch: int) -> list[Row]:
        """Samples shuffled, packed, rows shuffled: every epoch is packed anew."""
        generator = np.random.default_rng((seed, epoch))
        order = generator.permutation(len(self.samples)).tolist()
        packed = self.pack([len(self.samples[sample]) for sample in order])
        rows = [[order[place] for place in row] for row in packed]
        return [rows[place] for place in generator.permutation(len(rows))]

    def of(self, rows: Sequence[Row], batch_size: int, multiple: int) -> Iterator[Batch]:
        for chunk in chunks(rows, batch_size):
            documents = [[self.samples[number] for number in row] for row in chunk]
            yield collate(documents, self.pad_token_id, self.length, multiple)

    def fingerprint(self) -> str:
        """Of every token and label."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(np.array([len(sample), *sample.input_ids, *sample.labels], dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]
