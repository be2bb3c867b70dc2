"""Who has which block of the key-value cache, and which blocks hold a prefix that others may share.

Only full blocks are shared, and nobody writes into a full block: a row's next token goes to a position after them. So
no block is ever copied when rows that share it go on differently.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

Key = bytes  # names the tokens of a block and of all blocks before it


def next_key(before: Key, tokens: Sequence[int]) -> Key:
    """Of a full block: a hash of its tokens, chained to that of the block before (b"" for the first).

    Two prefixes with equal keys are taken for equal. At 16 bytes chance makes no such pair, nor does anyone on purpose.
    """
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()


class BlockManager:
    """Counts the owners of each block.

    A block without an owner is free. It keeps what it holds until someone takes it: those without a key are taken
    first, then the one that has been free for longest.

    Args:
        num_blocks: of the cache.
        block_size: positions in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._owners = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # in the order of taking
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)

    def find(self, keys: Iterable[Key]) -> list[int]:
        """The blocks of the longest prefix that the cache holds."""
        found = []
        for key in keys:
            if key not in self._block_of:
                break
            found.append(self._block_of[key])
        return found

    def acquire(self, shared: Sequence[int], count: int) -> list[int] | None:
        """Blocks for a row: `shared` ones, then `count` new ones. None, and no change, if too few are free."""
        if count + sum(block in self._free for block in shared) > self.num_free:
            return None
        for block in shared:
            self._owners[block] += 1
            self._free.pop(block, None)
        return [*shared, *(self._take() for _ in range(count))]

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._owners[block] = 1
        if key := self._key_of.pop(block, None):
            del self._block_of[key]
        return block

    def publish(self, block: int, key: Key) -> None:
        """The block is full and written: others may find it. The first of equal blocks is the one that is found."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key], self._key_of[block] = block, key

    def release(self, blocks: Sequence[int]) -> None:
        """An owner leaves. The last block is taken before the first, which more prompts begin with."""
        for block in reversed(blocks):
            if self._owners[block] < 1:
                raise RuntimeError(f"block manager: block {block} must have an owner to be released, got none")
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free[block] = None
                if block not in self._key_of:
                    self._free.move_to_end(block, last=False)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Compare the counts with the blocks of all rows.

        Raises:
            AssertionError: they differ, or free and held blocks are not all blocks; for tests.
        """
        counts = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a row has a block twice: {blocks}"
            for block in blocks:
                counts[block] += 1
        assert counts == self._owners, f"owners are {counts}, counted {self._owners}"
        assert set(self._free) == {block for block, count in enumerate(counts) if count == 0}
        assert self._block_of == {key: block for block, key in self._key_of.items()}
