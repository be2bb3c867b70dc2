"""What a training loop asks of its data, whatever a row is made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from examples.llama2_13b.data.packing import Batch, collate

Item = TypeVar("Item")


class Batches(Protocol):
    """Data as rows, and rows as micro-batches. What a row is, is the data's own affair."""

    def __len__(self) -> int:
        """0 without data."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""

    def rows(self) -> Sequence[Any]:
        """All rows, in the data's order."""

    def shuffled(self, seed: int, epoch: int) -> Any:
        """All rows in the order of an epoch, the same whenever it is asked for: a sequence or an array."""

    def of(self, rows: Sequence[Any], batch_size: int, multiple: int) -> Iterator[Batch]:
        """Rows as micro-batches of `batch_size` rows, whose length is a multiple."""

    def fingerprint(self) -> str:
        """Differs where the data do: a run resumes with the data that it began with."""


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def filled(batches: Iterable[Batch], count: int, multiple: int) -> Iterator[Batch]:
    """Of these micro-batches `count`: those that are missing have a row of `multiple` tokens without a target."""
    nothing = collate([[]], None, multiple)
    return itertools.islice(itertools.chain(batches, itertools.repeat(nothing)), count)
