"""Which rows each step sees: a function of seed and epoch, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from examples.llama2_13b.data.batches import Batches, chunks


@dataclass(frozen=True)
class Order:
    """The order of one run.

    Args:
        batches: the data.
        rows_per_step: of all micro-batches of a step together.
        seed: of the shuffling.
    """

    batches: Batches
    rows_per_step: int
    seed: int

    def epoch(self, number: int) -> list[Sequence[Any]]:
        """The rows of each step; the last step takes what remains."""
        return chunks(self.batches.shuffled(self.seed, number), self.rows_per_step)

    def steps(self) -> Iterator[Sequence[Any]]:
        """Epoch after epoch, without end."""
        for number in itertools.count():
            yield from self.epoch(number)

    def count(self, epochs: int) -> int:
        """Steps in the first epochs; their number differs a little where every epoch is packed anew."""
        return sum(len(self.epoch(number)) for number in range(epochs))
