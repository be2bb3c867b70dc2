"""Answers to many prompts, a batch at a time: when a row ends, the next prompt enters while the others go on."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.sampling import next_token


@dataclass
class Row:
    """A prompt being answered.

    Args:
        number: of the prompt.
        tokens: the prompt and the answer so far.
        num_prompt: how many of them are the prompt.
        blocks: of the cache.
        random: its own generator, so that its numbers do not depend on who else is in the batch.
        num_cached: tokens whose keys and values are in the cache.
    """

    number: int
    tokens: list[int]
    num_prompt: int
    blocks: list[int]
    random: np.random.Generator
    num_cached: int = 0

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.num_prompt :]


@dataclass(frozen=True)
class StepInputs:
    """The arrays of one step, named as `DecodeStep`'s inputs."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    last_tokens: NDArray[np.int32]
    seq_lens_encoder: NDArray[np.int32]
    seq_lens_decoder: NDArray[np.int32]
    seq_lens_this_time: NDArray[np.int32]
    block_tables: NDArray[np.int32]


# (inputs, cache) -> logits [rows, vocab_size]; the cache is written in place.
Step = Callable[[StepInputs, KeyValueCache], NDArray[np.float32]]


@dataclass
class Generation:
    """Generates for a list of prompts.

    Args:
        step: runs the model.
        cache: with room for at least one row.
        settings: how tokens are chosen.
        max_length: new tokens of a row at most.
        batch_size: rows at a time.
        seed: of the random numbers.
        max_tokens: of prompt and answer together at most; a prompt is shorter.
    """

    step: Step
    cache: KeyValueCache
    settings: GenerationSettings
    max_length: int
    batch_size: int
    seed: int
    max_tokens: int = sys.maxsize
    num_tokens: int = field(default=0, init=False)  # generated so far

    def run(self, prompts: Sequence[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """(number of the prompt, its answer without end token), in the order in which they end."""
        waiting = deque(enumerate(prompts))
        rows: list[Row] = []
        while waiting or rows:
            self._insert(waiting, rows)
            logits = self.step(collate(rows), self.cache)
            for row, scores in zip(list(rows), logits, strict=True):
                row.num_cached = len(row.tokens)
                token = next_token(scores, self.settings, row.tokens, row.random)
                self.num_tokens += 1
                ended = token in self.settings.eos_token_ids
                if not ended:
                    row.tokens.append(token)
                if ended or len(row.tokens) == self._limit(row.num_prompt):
                    rows.remove(row)
                    self.cache.give_back(row.blocks)
                    yield row.number, row.answer

    def _limit(self, num_prompt: int) -> int:
        return min(num_prompt + self.max_length, self.max_tokens)

    def _insert(self, waiting: deque[tuple[int, list[int]]], rows: list[Row]) -> None:
        while waiting and len(rows) < self.batch_size:
            number, prompt = waiting[0]
            blocks = self.cache.borrow(self._limit(len(prompt)))
            if blocks is None:
                if not rows:
                    raise ValueError(f"generation: the cache must hold {self._limit(len(prompt))} tokens of a row")
                return
            waiting.popleft()
            random = np.random.default_rng([self.seed, number])
            rows.append(Row(number, list(prompt), len(prompt), blocks, random))


def collate(rows: Sequence[Row]) -> StepInputs:
    """A new row brings its whole prompt, every other row its last token."""
    pending = [row.tokens[row.num_cached :] for row in rows]
    counts = [len(tokens) for tokens in pending]
    return StepInputs(
        input_ids=np.concatenate([np.array(tokens, np.int64) for tokens in pending]),
        position_ids=np.concatenate([np.arange(row.num_cached, len(row.tokens)) for row in rows]),
        last_tokens=np.cumsum(counts, dtype=np.int32) - np.int32(1),
        seq_lens_encoder=np.array([0 if row.num_cached else len(row.tokens) for row in rows], np.int32),
        seq_lens_decoder=np.array([row.num_cached for row in rows], np.int32),
        seq_lens_this_time=np.array(counts, np.int32),
        block_tables=_padded([row.blocks for row in rows]),
    )


def _padded(tables: Sequence[list[int]]) -> NDArray[np.int32]:
    array = np.full((len(tables), max(map(len, tables))), -1, np.int32)
    for row, table in zip(array, tables, strict=True):
        row[: len(table)] = table
    return array
