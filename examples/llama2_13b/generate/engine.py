"""The engine: requests enter and leave between steps, and each step brings news of some of them.

    engine = Engine(step, cache, tokenizer.decode, EngineLimits(max_positions=4096, vocab_size=32000))
    engine.add(Request("a", prompt, SamplingSettings(temperature=0.8, seed=1), stop=("\\n",)))
    while engine.has_work:
        for delta in engine.step():
            print(delta.request_id, delta.text, delta.finish_reason)

One thread calls it. It reads no clock and starts no thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.generate.block_manager import BlockManager
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.request import Delta, Request
from examples.llama2_13b.generate.row import Row
from examples.llama2_13b.generate.scheduler import EngineLimits, Scheduler
from examples.llama2_13b.generate.step_inputs import Part, Step, collate
from examples.llama2_13b.generate.text_stream import Decode

__all__ = ["Engine", "EngineLimits", "EngineStats"]


@dataclass(frozen=True)
class EngineStats:
    """Counts for people and monitors.

    Args:
        running: requests with blocks.
        waiting: requests without, those that were preempted included.
        free_blocks, total_blocks: of the cache. Free ones may hold a prefix that a later request reuses.
        steps: runs of the model, since the start.
        preemptions: how often a running request lost its blocks, since the start.
        prefix_hit_tokens: tokens whose keys and values were found in the cache, since the start.
        prompt_tokens, generated_tokens: of all requests, since the start.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    steps: int
    preemptions: int
    prefix_hit_tokens: int
    prompt_tokens: int
    generated_tokens: int


class Engine:
    """Answers requests, many at a time.

    Args:
        step: runs the model.
        cache: of keys and values. No prompt and answer together are longer than what it holds.
        decode: makes text of tokens.
        limits: of a step and a request.
    """

    def __init__(self, step: Step, cache: KeyValueCache, decode: Decode, limits: EngineLimits) -> None:
        self._step, self._cache, self._decode, self.limits = step, cache, decode, limits
        self._scheduler = Scheduler(BlockManager(cache.num_blocks, cache.block_size), limits)
        self._longest = min(limits.max_positions, cache.num_blocks * cache.block_size)
        self._rows: dict[str, Row] = {}
        self._cancelled: list[str] = []
        self._steps = self._prompt_tokens = self._generated_tokens = 0

    def add(self, request: Request) -> None:
        """Let a request in. It takes part from the next step on if there is room, and else waits its turn.

        Raises:
            ValueError: it can never run, or its id is taken; the argument is named.
        """
        taken = request.id in self._rows or request.id in self._cancelled
        _require(request, not taken, "id", "of no other request that is under way", request.id)
        _require(request, len(request.prompt) > 0, "prompt", "at least one token long", 0)
        held = f"{self.limits.max_positions} positions of the model and {self._cache_positions} of the cache"
        _require(request, len(request.prompt) < self._longest, "prompt", f"shorter than {held}", len(request.prompt))
        vocab_size = self.limits.vocab_size
        for name, tokens in (("prompt", request.prompt), ("logit_bias", request.settings.logit_bias)):
            beyond = [token for token in tokens if token >= vocab_size]
            _require(request, not beyond, name, f"of tokens below vocab_size {vocab_size}", beyond[:1])
        row = self._rows[request.id] = Row(request, self._longest, self._decode)
        self._scheduler.add(row)
        self._prompt_tokens += len(request.prompt)

    @property
    def _cache_positions(self) -> int:
        return self._cache.num_blocks * self._cache.block_size

    def cancel(self, request_id: str) -> bool:
        """End a request; the next step's news say so. False if there is none of this id, perhaps no longer."""
        row = self._rows.pop(request_id, None)
        if row is None:
            return False
        self._scheduler.remove(row)
        self._cancelled.append(request_id)
        return True

    @property
    def has_work(self) -> bool:
        """Whether another step would bring news, now or later."""
        return bool(self._rows or self._cancelled)

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.blocks.num_free,
            total_blocks=scheduler.blocks.num_blocks,
            steps=self._steps,
            preemptions=scheduler.num_preemptions,
            prefix_hit_tokens=scheduler.num_reused_tokens,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    def step(self) -> list[Delta]:
        """Run the model once, if a request waits for it. If that fails, the same step may be tried again.

        Returns:
            The news, at most one of each request: of those that were cancelled, then in the order of arrival. A
            request whose prompt takes several steps has none before the last of them.
        """
        counts = self._scheduler.plan()
        deltas = []
        if counts:
            logits = self._step(collate([_part(row, count) for row, count in counts.items()]), self._cache)
            self._steps += 1
            self._scheduler.commit(counts)
            deltas = [self._advance(row, scores) for row, scores in zip(counts, logits, strict=True) if row.is_complete]
        cancelled, self._cancelled = self._cancelled, []
        return [*(Delta(request_id, finish_reason="cancelled") for request_id in cancelled), *deltas]

    def _advance(self, row: Row, scores: NDArray[np.float32]) -> Delta:
        delta = row.advance(scores)
        self._generated_tokens += len(delta.tokens)
        if delta.finish_reason:
            del self._rows[row.request.id]
            self._scheduler.remove(row)
        return delta

    def check(self) -> None:
        """Raise AssertionError unless every block is free, or owned by as many rows as its count says; for tests."""
        self._scheduler.blocks.check(row.blocks for row in self._scheduler.running)
        assert not any(row.blocks or row.num_cached for row in self._scheduler.waiting)
        assert len(self._rows) == len(self._scheduler.running) + len(self._scheduler.waiting)


def _part(row: Row, count: int) -> Part:
    return Part(row.tokens[row.num_cached : row.num_cached + count], row.num_cached, row.blocks)


def _require(request: Request, condition: bool, argument: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"request {request.id}: {argument} must be {rule}, got {got}")
