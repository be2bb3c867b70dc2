"""The paged key-value cache: blocks of positions that rows of a batch borrow and give back."""

from __future__ import annotations

import paddle

from examples.llama2_13b.model.config import LlamaConfig


class KeyValueCache:
    """Keys and values of every layer, [num_blocks, num_key_value_heads, block_size, head_dim] each.

    Args:
        config: the model's.
        dtype: of the activations.
        num_blocks, block_size: how much it holds: num_blocks * block_size positions of all rows together.
    """

    def __init__(self, config: LlamaConfig, dtype: str, num_blocks: int, block_size: int) -> None:
        shape = [num_blocks, config.num_key_value_heads, block_size, config.head_dim]
        self.block_size, self.total_blocks = block_size, num_blocks
        self.keys = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.values = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
        self._free = list(range(num_blocks))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def borrow(self, num_positions: int) -> list[int] | None:
        """Blocks for so many positions; None when too few are free."""
        count = blocks_for(num_positions, self.block_size)
        if count > len(self._free):
            return None
        borrowed, self._free = self._free[:count], self._free[count:]
        return borrowed

    def give_back(self, blocks: list[int]) -> None:
        self._free += blocks


def blocks_for(num_positions: int, block_size: int) -> int:
    return -(-num_positions // block_size)
