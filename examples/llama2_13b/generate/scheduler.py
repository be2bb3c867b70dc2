"""Which rows take part in a step, and with how many tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from examples.llama2_13b.generate.block_manager import BlockManager
from examples.llama2_13b.generate.row import Row


@dataclass(frozen=True)
class EngineLimits:
    """What a step may hold.

    Args:
        max_positions: of prompt and answer together: the model's.
        vocab_size: token ids are below it.
        max_rows: requests in a step at most; others wait.
        max_tokens_per_step: of prompts and answers together. A longer prompt takes several steps.
        reuse_prefixes: look for the beginning of a prompt in the cache. Better not where the device then leaves its
            fused layers, as `StaticProgram.takes_parts` tells.
    """

    max_positions: int
    vocab_size: int
    max_rows: int = 16
    max_tokens_per_step: int = 512
    reuse_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("max_positions", "vocab_size", "max_rows", "max_tokens_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine: {name} must be at least 1, got {getattr(self, name)}")
        if self.max_tokens_per_step < self.max_rows:
            rule = f"at least max_rows {self.max_rows}, a token each"
            raise ValueError(f"engine: max_tokens_per_step must be {rule}, got {self.max_tokens_per_step}")


class Scheduler:
    """Rows that wait and rows that run, both in the order of their arrival.

    A row that starts gets blocks for all tokens that it has. Later it gets one when its last is full. If none is free,
    the row that arrived last loses its blocks. It waits in front, and computes prompt and answer again when it is back.
    So the first row always goes on.

    Args:
        blocks: of the cache.
        limits: of a step.
    """

    def __init__(self, blocks: BlockManager, limits: EngineLimits) -> None:
        self.blocks, self._limits = blocks, limits
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.num_preemptions = self.num_reused_tokens = 0

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """The row has ended, or was cancelled, wherever it is."""
        if row in self.running:
            self.running.remove(row)
            self._give_back(row)
        else:
            self.waiting.remove(row)

    def plan(self) -> dict[Row, int]:
        """Tokens of each row in the next step, in the order of arrival. Rows enter or lose their blocks here."""
        counts: dict[Row, int] = {}
        before = self.num_preemptions
        for row in sorted(self.running, key=lambda row: row.num_pending > 1):  # answers first: they wait for one token
            if row.blocks and self._extend(row):
                self._count(row, counts)
        while self.num_preemptions == before and self._room(counts) and self._admit():
            self._count(self.running[-1], counts)
        return {row: counts[row] for row in self.running if counts.get(row)}

    def _room(self, counts: Mapping[Row, int]) -> int:
        return self._limits.max_tokens_per_step - sum(counts.values())

    def _count(self, row: Row, counts: dict[Row, int]) -> None:
        counts[row] = min(row.num_pending, self._room(counts))

    def _extend(self, row: Row) -> bool:
        """Give the row blocks for all its tokens; False if it is the one that had to leave."""
        missing = self.blocks.blocks_for(len(row.tokens)) - len(row.blocks)
        while (new := self.blocks.acquire((), missing)) is None:
            last = self.running[-1]
            self._preempt(last)
            if last is row:
                return False
        row.blocks += new
        return True

    def _preempt(self, row: Row) -> None:
        self.running.remove(row)
        self.waiting.appendleft(row)
        self._give_back(row)
        self.num_preemptions += 1

    def _give_back(self, row: Row) -> None:
        self.blocks.release(row.blocks)
        row.blocks, row.num_cached = [], 0

    def _admit(self) -> bool:
        """Let the first waiting row in if a place and blocks are free. At least its last token is left to compute."""
        if not self.waiting or len(self.running) == self._limits.max_rows:
            return False
        row, size = self.waiting[0], self.blocks.block_size
        whole = (len(row.tokens) - 1) // size if self._limits.reuse_prefixes else 0
        shared = self.blocks.find(row.keys(whole, size))
        blocks = self.blocks.acquire(shared, self.blocks.blocks_for(len(row.tokens)) - len(shared))
        if blocks is None:
            return False
        row.blocks, row.num_cached = blocks, len(shared) * size
        self.num_reused_tokens += row.num_cached
        self.running.append(self.waiting.popleft())
        return True

    def commit(self, counts: Mapping[Row, int]) -> None:
        """The step is done: its tokens are in the cache, and blocks that are full now may be shared."""
        size = self.blocks.block_size
        for row, count in counts.items():
            full = row.num_cached // size
            row.num_cached += count
            keys = row.keys(row.num_cached // size, size)
            for number in range(full, len(keys)):
                self.blocks.publish(row.blocks[number], keys[number])
