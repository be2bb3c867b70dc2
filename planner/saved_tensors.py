"""What a forward pass keeps for its backward pass, tensor by tensor, as fusionkit's own fused ops save them.

A fused op keeps what it reads. A device's own op keeps the copies that bring its arguments into the form that it takes.
The Llama example's `train/kept.py` says the same of a whole run, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout

FLOAT32 = 4  # bytes
ID = 8  # bytes of a token's
STATISTICS = 2 * 8  # float32 numbers of a row and head that a device's attention keeps
Kernels = Literal["fused", "device"]
Bytes = Mapping[str, float]

STREAM, PROJECTED, SCORED = "inputs of the norms", "inputs of the products", "queries, keys and values"
GATED, STATED = "gate and up", "attention's statistics"


@dataclass(frozen=True)
class Sizes:
    """Of one device's part of a micro-batch.

    Args:
        tokens: between the products.
        own: tokens of this device elsewhere; fewer with sequence parallelism.
        element: bytes of an activation.
    """

    tokens: int
    own: int
    sequence: int
    hidden: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    inner: int
    widened: int
    vocab: int
    element: int
    is_divided: bool
    kernels: Kernels

    @property
    def stream(self) -> float:
        """Bytes of the residual stream."""
        return float(self.own * self.hidden * self.element)

    @classmethod
    def of(cls, a: Architecture, layout: Layout, sequence: int, element: int, kernels: Kernels) -> Sizes:
        """Of the first rank of tensor, whose part of the vocabulary is the largest."""
        t = layout.tensor
        rows = -(-sequence // layout.context)
        rows += -rows % t
        tokens = layout.micro_batch * rows
        return cls(
            tokens=tokens,
            own=tokens // t if layout.sequence_parallel else tokens,
            sequence=rows,
            hidden=a.hidden_size,
            queries=a.queries // t,
            keys=a.keys // t,
            heads=a.num_attention_heads // t,
            head_dim=a.head_dim,
            inner=a.intermediate_size // t,
            widened=a.widened // t,
            vocab=-(-a.vocab_size // t),
            element=element,
            is_divided=t > 1,
            kernels=kernels,
        )


@lru_cache(maxsize=256)
def attention(s: Sizes, is_first: bool, keeps_core: bool = True) -> Bytes:
    """A layer's first half; the first layer of a model or chunk has no residual stream to add.

    Args:
        keeps_core: else attention without its products is computed again, from queries, keys and values.
    """
    products = float(s.tokens * (s.hidden + s.queries) * s.element)
    norm = {STREAM: _first_norm(s) if is_first else _norm(s), PROJECTED: products}
    if not keeps_core:
        return {**norm, SCORED: float(s.tokens * (s.queries + 2 * s.keys) * s.element)}
    return {**norm, **core(s)}


@lru_cache(maxsize=256)
def core(s: Sizes) -> Bytes:
    """Rope and attention. A device's op keeps its mask as bytes, and angles in both halves."""
    if s.kernels == "fused":
        kept = s.tokens * (s.queries + 2 * s.keys) * s.element
        return {SCORED: float(kept), STATED: float(s.tokens * s.heads * FLOAT32)}
    masked = s.queries + 2 * s.keys + s.sequence
    kept = s.tokens * ((2 * s.queries + 2 * s.keys) * s.element + masked)
    stated = s.tokens * (STATISTICS * s.heads + 2 * s.head_dim) * FLOAT32
    return {SCORED: float(kept), STATED: float(stated)}


@lru_cache(maxsize=256)
def mlp(s: Sizes) -> Bytes:
    """A layer's second half."""
    products = float(s.tokens * (s.hidden + s.inner) * s.element)
    return {STREAM: _norm(s), PROJECTED: products, GATED: float(s.tokens * s.widened * s.element)}


@lru_cache(maxsize=256)
def inputs(s: Sizes, is_first: bool) -> Bytes:
    """All that a layer keeps which is computed again."""
    return {STREAM: s.stream * (1 if is_first else 2)}


def embedding(s: Sizes) -> Bytes:
    """The ids; of a divided vocabulary also which rows are this rank's, a byte an element."""
    return {"ids of tokens": float(s.tokens * (ID + (s.hidden if s.is_divided else 0)))}


def head(s: Sizes) -> Bytes:
    """The last norm, and the gradients that the loss takes in its forward pass."""
    gradients = s.tokens * s.hidden * s.element + s.hidden * s.vocab * FLOAT32
    return {STREAM: _norm(s), "gradients of the loss": float(gradients)}


def attention_backward(s: Sizes) -> float:
    """Bytes beside what is kept: gradients of queries, keys, values and output, and of o_proj's weight."""
    return float(s.tokens * 2 * (s.queries + s.keys) * s.element + s.queries * s.hidden * FLOAT32)


def mlp_backward(s: Sizes) -> float:
    """Bytes beside what is kept: gradients of gate and up, and of down_proj's weight."""
    return float(s.tokens * s.widened * s.element + s.inner * s.hidden * FLOAT32)


def _first_norm(s: Sizes) -> float:
    return float(s.own * (s.hidden * (FLOAT32 if s.kernels == "device" else s.element) + FLOAT32))


def _norm(s: Sizes) -> float:
    """The stream and a number a row. The output is the next product's input, and gathered there if divided."""
    return s.stream * (2 if s.own < s.tokens else 1) + s.own * FLOAT32
