"""Which samples each step sees: a function of seed and epoch, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from examples.llama2_13b.data.packing import Pack, Row


@dataclass(frozen=True)
class Order:
    """The order of one run.

    Args:
        lengths: of the samples, in tokens.
        pack: lengths to rows of sample numbers.
        rows_per_step: of all micro-batches of a step together.
        seed: of the shuffling.
    """

    lengths: Sequence[int]
    pack: Pack
    rows_per_step: int
    seed: int

    def epoch(self, number: int) -> list[list[Row]]:
        """The rows of each step: samples shuffled, packed, rows shuffled; the last step takes what remains."""
        generator = np.random.default_rng((self.seed, number))
        shuffled = generator.permutation(len(self.lengths)).tolist()
        packed = self.pack([self.lengths[sample] for sample in shuffled])
        rows = [[shuffled[place] for place in row] for row in packed]
        return chunks([rows[place] for place in generator.permutation(len(rows))], self.rows_per_step)

    def steps(self) -> Iterator[list[Row]]:
        """Epoch after epoch, without end."""
        for number in itertools.count():
            yield from self.epoch(number)

    def count(self, epochs: int) -> int:
        """Steps in the first epochs; their number differs a little, as every epoch is packed anew."""
        return sum(len(self.epoch(number)) for number in range(epochs))


def chunks(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
