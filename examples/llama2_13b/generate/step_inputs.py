"""The arrays of one step: for each row of the batch some tokens, and where its keys and values are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generate.key_value_cache import KeyValueCache


@dataclass(frozen=True)
class StepInputs:
    """Named as `DecodeStep`'s inputs."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    last_tokens: NDArray[np.int32]
    seq_lens_encoder: NDArray[np.int32]
    seq_lens_decoder: NDArray[np.int32]
    seq_lens_this_time: NDArray[np.int32]
    block_tables: NDArray[np.int32]


# (inputs, cache) -> logits [rows, vocab_size]; the cache is written in place.
Step = Callable[[StepInputs, KeyValueCache], NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """The tokens that a row brings to a step.

    Args:
        tokens: at least one.
        start: the position of the first; those before are in the cache.
        blocks: of the row, enough for its tokens.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]


def collate(parts: Sequence[Part]) -> StepInputs:
    """A row that starts is in prefill. One that goes on is in decode, however many tokens it brings."""
    counts = [len(part.tokens) for part in parts]
    return StepInputs(
        input_ids=np.concatenate([np.array(part.tokens, np.int64) for part in parts]),
        position_ids=np.concatenate([np.arange(part.start, part.start + len(part.tokens)) for part in parts]),
        last_tokens=np.cumsum(counts, dtype=np.int32) - np.int32(1),
        seq_lens_encoder=np.array([0 if part.start else len(part.tokens) for part in parts], np.int32),
        seq_lens_decoder=np.array([part.start for part in parts], np.int32),
        seq_lens_this_time=np.array(counts, np.int32),
        block_tables=_padded([part.blocks for part in parts]),
    )


def _padded(tables: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    array = np.full((len(tables), max(map(len, tables))), -1, np.int32)
    for row, table in zip(array, tables, strict=True):
        row[: len(table)] = table
    return array
