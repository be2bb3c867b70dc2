"""What the kernels of a paged cache are told, in bundles; attention_arguments.py says how Triton takes them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """A tensor [tokens, heads, head_dim] with a dense last axis: its address and its other strides."""

    at: Any
    token: Any
    head: Any


class Cache(NamedTuple):
    """A cache [blocks, heads, slots, head_dim] with a dense last axis: its address and its other strides."""

    at: Any
    block: Any
    head: Any
    slot: Any


class Rows(NamedTuple):
    """The rows of a step: each one's first token in q, and the op's three lengths. All [batch_size] int32."""

    firsts: Any
    encoder: Any
    decoder: Any
    this_time: Any


class Paths(NamedTuple):
    """What a program is compiled for.

    Args:
        block_m, block_n, block_d: queries, keys and elements of a head in a block.
        split: the keys of a row are divided over programs, whose partial results are added later.
        careful: the launch takes again what an earlier one left and is not finite, without the keys that a query does
            not see.
    """

    block_m: int
    block_n: int
    block_d: int
    split: bool
    careful: bool
