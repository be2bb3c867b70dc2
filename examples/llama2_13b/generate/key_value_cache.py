"""The memory of the paged key-value cache. `BlockManager` says who has which of its blocks."""

from __future__ import annotations

import paddle

from examples.llama2_13b.folders.config import LlamaConfig


class KeyValueCache:
    """Keys and values of every layer, [num_blocks, num_key_value_heads, block_size, head_dim] each.

    Args:
        config: the model's.
        dtype: of the activations.
        num_blocks, block_size: how much it holds: num_blocks * block_size positions of all rows together.
    """

    def __init__(self, config: LlamaConfig, dtype: str, num_blocks: int, block_size: int) -> None:
        shape = [num_blocks, config.num_key_value_heads, block_size, config.head_dim]
        self.num_blocks, self.block_size = num_blocks, block_size
        self.keys = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.values = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
