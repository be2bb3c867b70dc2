"""The memory of the paged key-value cache. `BlockManager` says who has which of its blocks."""

from __future__ import annotations

import paddle

from examples.llama2_13b.folders.config import LlamaConfig

SCALE_BYTES = 4  # float32
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def bytes_per_token(config: LlamaConfig, dtype: str) -> int:
    """Of a token's keys and values in all layers."""
    scale = SCALE_BYTES if dtype == "int8" else 0
    head = config.head_dim * ELEMENT_BYTES[dtype] + scale
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


class KeyValueCache:
    """Keys and values of every layer, [num_blocks, num_key_value_heads, block_size, head_dim] each; in int8 with the
    scales of their tokens, [num_blocks, num_key_value_heads, block_size] float32, else none.

    Args:
        config: the model's.
        dtype: `StaticProgram.cache_dtype`.
        num_blocks, block_size: how much it holds: num_blocks * block_size positions of all rows together.
    """

    def __init__(self, config: LlamaConfig, dtype: str, num_blocks: int, block_size: int) -> None:
        shape = [num_blocks, config.num_key_value_heads, block_size, config.head_dim]
        self.num_blocks, self.block_size = num_blocks, block_size
        self.keys = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.values = [paddle.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]
        with_scales = range(config.num_hidden_layers) if dtype == "int8" else ()
        self.key_scales = [paddle.zeros(shape[:-1], "float32") for _ in with_scales]
        self.value_scales = [paddle.zeros(shape[:-1], "float32") for _ in with_scales]
