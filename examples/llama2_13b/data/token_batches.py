"""Documents of token files as rows of equal length."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.data.batches import chunks
from examples.llama2_13b.data.packing import Batch, collate
from examples.llama2_13b.data.samples import IGNORED, Sample
from examples.llama2_13b.data.token_files import TokenFiles, checksum


@dataclass(frozen=True)
class TokenRows:
    """Consecutive documents of token files, put together and cut into rows.

    Row i reads tokens i * length to (i + 1) * length - 1 and learns the token after each. The last row is shorter:
    nothing follows the last token. A part of a document in a row is a document of its own there. The last token of a
    document has nothing to predict.

    Args:
        tokens: the files.
        documents: numbers of those in this split.
        length: tokens of a row.
        vocab_size: of the model; above every id.
    """

    tokens: TokenFiles
    documents: range
    length: int
    vocab_size: int

    def __len__(self) -> int:
        return -(-self._num_inputs // self.length)

    @property
    def num_tokens(self) -> int:
        return self.tokens.start(self.documents.stop) - self._first

    @property
    def _first(self) -> int:
        """The place of this split's first token in the files."""
        return self.tokens.start(self.documents.start)

    @property
    def _num_inputs(self) -> int:
        """Tokens that have one after them."""
        return max(0, self.num_tokens - 1)

    def row(self, number: int) -> list[Sample]:
        """The parts of documents in it."""
        start = self._first + number * self.length
        stop = min(start + self.length, self._first + self._num_inputs)
        ids = self._ids(start, stop + 1)
        after = bisect_right(self.documents, start, key=lambda document: self.tokens.start(document + 1))
        document, parts = self.documents[after], []
        while start < stop:
            end = self.tokens.start(document + 1)
            count = min(end, stop) - start
            if count:  # other programs write empty documents
                labels = ids[1 : count + 1].copy()
                if end <= stop:
                    labels[-1] = IGNORED
                parts.append(Sample(ids[:count], labels))
            start, ids, document = start + count, ids[count:], document + 1
        return parts

    def _ids(self, start: int, stop: int) -> NDArray[np.int64]:
        ids = self.tokens.read(start, stop)
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if len(wrong):
            raise ValueError(
                f"{self.tokens.tokens_path}: token {start + wrong[0]} must be below the model's vocab_size "
                f"{self.vocab_size}, got {ids[wrong[0]]}. The tokens are another tokenizer's"
            )
        return ids


@dataclass(frozen=True)
class TokenBatches:
    """The rows of several token files; a row is its number, found in the files when it is asked for.

    Args:
        parts: of each file its rows, all of the same length.
        pad_token_id: fills the last row of a file; None without a padding token.
        limit: `rows()` are at most so many, from all over the files; None for all.
    """

    parts: Sequence[TokenRows]
    pad_token_id: int | None = None
    limit: int | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def longest(self) -> int:
        return self.parts[0].length

    def rows(self) -> Sequence[int]:
        count = len(self)
        shown = count if self.limit is None else min(count, self.limit)
        return [number * count // shown for number in range(shown)]

    def shuffled(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, epoch)).permutation(len(self))

    def of(self, rows: Sequence[int], batch_size: int, multiple: int) -> Iterator[Batch]:
        for chunk in chunks(rows, batch_size):
            yield collate([self._row(int(row)) for row in chunk], self.pad_token_id, self.parts[0].length, multiple)

    def fingerprint(self) -> str:
        return checksum("".join(part.tokens.fingerprint for part in self.parts).encode())[:16]

    @cached_property
    def _ends(self) -> list[int]:
        """How many rows there are up to the end of each part."""
        return list(itertools.accumulate(map(len, self.parts)))

    def _row(self, number: int) -> list[Sample]:
        part = bisect_right(self._ends, number)
        return self.parts[part].row(number - (self._ends[part - 1] if part else 0))


def shares_of(split: str) -> list[float] | None:
    """The numbers of `949,50,1`; None unless they are one to three of at least 0, the first above 0."""
    try:
        shares = [float(word) for word in split.split(",")]
    except ValueError:
        return None
    good = len(shares) <= 3 and math.isfinite(sum(shares)) and min(shares) >= 0 and shares[0] > 0
    return shares if good else None


def split_documents(shares: Sequence[float], count: int) -> tuple[range, range, range]:
    """The documents of train, valid and test, in order; a share that is missing is 0."""
    sums = [sum(shares[:number]) for number in (1, 2, 3)]
    train, valid, test = (round(count * each / sums[-1]) for each in sums)
    return range(train), range(train, valid), range(valid, test)
