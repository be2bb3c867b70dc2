"""What the attention kernels are told, in bundles: tensors with their strides, and what a program is compiled for.

Triton takes a NamedTuple as an argument and as a constant. A constant's printed fields are part of the key of the
compiled program, so whatever a kernel decides by must be a field; a dataclass would fail under Triton's hooks, which
write it as JSON. Sizes that change from call to call are arguments of their own (SIZES): in a tuple each new value
could compile a program.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Arguments whose value compiles no program of its own: a new length must not compile on the hot path.
SIZES = ["q_len", "kv_len", "num_heads", "num_key_value_heads", "bound_heads", "max_blocks", "mask_batch", "mask_head"]


class Heads(NamedTuple):
    """A tensor [batch_size, rows, heads, head_dim] with a dense last axis: its address and its other strides."""

    at: Any
    batch: Any
    row: Any
    head: Any


class Rows(NamedTuple):
    """One head of such a tensor: the address of its first row, and the stride between rows."""

    at: Any
    stride: Any


class Mask(NamedTuple):
    """attn_mask from one head on, and its strides over queries and over keys."""

    at: Any
    row: Any
    column: Any


class Lists(NamedTuple):
    """startend_row_indices, and the lists of attention_blocks.py: the blocks that attend, and how many."""

    bounds: Any
    blocks: Any
    counts: Any


class Sizes(NamedTuple):
    q_len: Any
    kv_len: Any
    head_dim: Any


class Pairs(NamedTuple):
    """What decides which pairs of one head attend, and the list of blocks that this program walks."""

    mask: Any
    bounds: Any
    blocks: Any
    sizes: Any


class Paths(NamedTuple):
    """What an attention kernel is compiled for.

    Args:
        block_m, block_n, block_d: queries, keys and elements of a head in a block.
        padded: head_dim is less than block_d.
        bool_mask, float_mask: the kind of attn_mask; neither: there is none.
        num_bounds: columns of startend_row_indices; 0: there are none.
        in_parts: lse is read and written as two addends.
        negative: scale is below 0.
        careful: the launch takes again what an earlier one left and is not finite, without the dropped pairs.
        skips: blocks that every row sees whole are walked without asking which pairs attend.
    """

    block_m: int
    block_n: int
    block_d: int
    padded: bool
    causal: bool = False
    bool_mask: bool = False
    float_mask: bool = False
    num_bounds: int = 0
    in_parts: bool = False
    negative: bool = False
    careful: bool = False
    skips: bool = False
