"""The engine: requests enter and leave between steps, and each step brings news of some of them.

    engine = Engine(step, cache, tokenizer.decode, EngineLimits(max_positions=4096, vocab_size=32000))
    engine.add(Request("a", prompt, SamplingSettings(temperature=0.8, seed=1), stop=("\\n",)))
    while engine.has_work:
        for delta in engine.step():
            print(delta.request_id, delta.text, delta.finish_reason)

One thread calls it. It never waits, draws no clock and starts no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.llama2_13b.generate.generation import Row, Step, collate
from examples.llama2_13b.generate.generation_settings import GenerationSettings
from examples.llama2_13b.generate.key_value_cache import KeyValueCache, blocks_for
from examples.llama2_13b.generate.request import Delta, FinishReason, Request
from examples.llama2_13b.generate.sampling import next_token

Decode = Callable[[Sequence[int]], str]  # token ids -> text, without control tokens


@dataclass(frozen=True)
class EngineLimits:
    """What a step may hold.

    Args:
        max_positions: of prompt and answer together: the model's.
        vocab_size: token ids are below it.
        max_rows: requests in a step at most; others wait.
        max_tokens_per_step: of prompts and answers together. Longer prompts take several steps.
    """

    max_positions: int
    vocab_size: int
    max_rows: int = 16
    max_tokens_per_step: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"engine: {name} must be at least 1, got {value}")
        if self.max_tokens_per_step < self.max_rows:
            rule = f"at least max_rows {self.max_rows}, a token each"
            raise ValueError(f"engine: max_tokens_per_step must be {rule}, got {self.max_tokens_per_step}")


@dataclass(frozen=True)
class EngineStats:
    """Counts for people and monitors.

    Args:
        running: requests with blocks.
        waiting: requests without, those that were preempted included.
        free_blocks, total_blocks: of the cache. Free ones may hold a prefix that a later request reuses.
        preemptions: how often a running request lost its blocks, since the start.
        prefix_hit_tokens: prompt tokens whose keys and values were found in the cache, since the start.
        prompt_tokens, generated_tokens: of all requests, since the start.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    preemptions: int
    prefix_hit_tokens: int
    prompt_tokens: int
    generated_tokens: int


class Engine:
    """Answers requests, many at a time.

    Args:
        step: runs the model.
        cache: of keys and values; it must hold at least one request.
        decode: makes text of tokens.
        limits: of a step and a request.
    """

    def __init__(self, step: Step, cache: KeyValueCache, decode: Decode, limits: EngineLimits) -> None:
        self._step, self._cache, self._decode, self._limits = step, cache, decode, limits
        self._waiting: deque[Request] = deque()
        self._rows: list[tuple[Request, Row]] = []
        self._cancelled: list[str] = []
        self._prompt_tokens = self._generated_tokens = 0

    def add(self, request: Request) -> None:
        """Let a request in; it takes part from the next step on if there is room, and else waits its turn.

        Raises:
            ValueError: it can never run, or its id is taken; the argument is named.
        """
        prompt, limits = request.prompt, self._limits
        self._require(request, request.id not in self._ids(), "id", "of no other request that is under way", request.id)
        self._require(request, len(prompt) > 0, "prompt", "at least one token long", 0)
        rule = f"shorter than the model's {limits.max_positions} positions"
        self._require(request, len(prompt) < limits.max_positions, "prompt", rule, len(prompt))
        held = self._cache.total_blocks * self._cache.block_size
        rule = f"shorter than the {held} positions of the cache"
        self._require(request, len(prompt) < held, "prompt", rule, len(prompt))
        for name, tokens in (("prompt", prompt), ("logit_bias", request.settings.logit_bias)):
            beyond = [token for token in tokens if token >= limits.vocab_size]
            rule = f"of tokens below vocab_size {limits.vocab_size}"
            self._require(request, not beyond, name, rule, beyond[:1])
        self._waiting.append(request)
        self._prompt_tokens += len(prompt)

    def cancel(self, request_id: str) -> bool:
        """End a request; the next step's news say so. False if there is none of this id, perhaps no longer."""
        if request_id not in self._ids():
            return False
        self._cancelled.append(request_id)
        self._waiting = deque(request for request in self._waiting if request.id != request_id)
        for request, row in self._rows:
            if request.id == request_id:
                self._cache.give_back(row.blocks)
        self._rows = [one for one in self._rows if one[0].id != request_id]
        return True

    @property
    def has_work(self) -> bool:
        """Whether another step would bring news."""
        return bool(self._waiting or self._rows or self._cancelled)

    @property
    def stats(self) -> EngineStats:
        free, total = self._cache.free_blocks, self._cache.total_blocks
        counts = self._prompt_tokens, self._generated_tokens
        return EngineStats(len(self._rows), len(self._waiting), free, total, 0, 0, *counts)

    def step(self) -> list[Delta]:
        """Run the model once, if anything waits for it.

        Returns:
            The news: at most one of each request, in the order in which the requests came.
        """
        deltas = [Delta(request_id, finish_reason="cancelled") for request_id in self._cancelled]
        self._cancelled = []
        self._insert()
        if not self._rows:
            return deltas
        logits = self._step(collate([row for _, row in self._rows]), self._cache)
        for (request, row), scores in zip(list(self._rows), logits, strict=True):
            deltas.append(self._advance(request, row, scores))
        return deltas

    def _advance(self, request: Request, row: Row, scores: np.ndarray) -> Delta:
        row.num_cached = len(row.tokens)
        settings = request.settings
        chosen = GenerationSettings(
            (),
            "greedy_search" if settings.is_greedy else "sampling",
            settings.top_p,
            settings.temperature,
            settings.repetition_penalty,
            settings.top_k,
            settings.min_p,
        )
        before = self._decode(row.answer)
        token = next_token(scores, chosen, row.tokens, row.random)
        row.tokens.append(token)
        self._generated_tokens += 1
        reason: FinishReason | None = None
        if token in request.eos_token_ids and not request.ignore_eos:
            reason = "stop"
        elif len(row.tokens) == self._limit(request):
            reason = "length"
        if reason:
            self._rows.remove((request, row))
            self._cache.give_back(row.blocks)
        text = "" if reason == "stop" else self._decode(row.answer).removeprefix(before)
        return Delta(request.id, (token,), text, finish_reason=reason)

    def _limit(self, request: Request) -> int:
        longest = self._limits.max_positions
        return min(longest, len(request.prompt) + (request.max_new_tokens or longest))

    def _insert(self) -> None:
        while self._waiting and len(self._rows) < self._limits.max_rows:
            request = self._waiting[0]
            blocks = self._cache.borrow(self._limit(request))
            if blocks is None:
                return
            self._waiting.popleft()
            random = np.random.default_rng(request.settings.seed)
            self._rows.append((request, Row(0, list(request.prompt), len(request.prompt), blocks, random)))

    def _ids(self) -> set[str]:
        return {one.id for one in self._waiting} | {one.id for one, _ in self._rows} | set(self._cancelled)

    def _require(self, request: Request, condition: bool, argument: str, rule: str, got: object) -> None:
        if not condition:
            raise ValueError(f"request {request.id}: {argument} must be {rule}, got {got}")


def num_blocks_for(limits: EngineLimits, block_size: int) -> int:
    """Blocks with which no request ever waits for another's: the most that a step's rows can need."""
    return limits.max_rows * blocks_for(limits.max_positions, block_size)
