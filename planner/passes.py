"""What the passes of a micro-batch compute and send on one device, kernel by kernel.

Widths are those of one device's part. Activations and what products read are in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout
from fusionkit_planner.system import BACKWARD_KERNELS, System

ELEMENT = 2  # bytes
BACKWARD_TRAFFIC = 1.5  # a gradient and what was saved are read, and a gradient is written: three tensors for two

Collective = Literal["", "gather", "all_reduce"]  # a reduce-scatter takes as long as a gather


@dataclass(frozen=True)
class Matrix:
    """A product [rows, in_features] @ [in_features, out_features], and the collective that may run beside it.

    Args:
        sent_bytes: of the collective's whole tensor.
    """

    rows: int
    in_features: int
    out_features: int
    collective: Collective = ""
    sent_bytes: float = 0.0


@dataclass(frozen=True)
class Work:
    """Of one pass.

    Args:
        products: of matrices.
        score_flops: of attention's products.
        num_scores: that are written to memory.
        num_bytes: read and written by all other kernels, but those on scores and logits.
        num_logits: elements.
        gathered_bytes: keys and values that go to the other ranks of context, whole.
        weights: elements whose gradient a product joins.
        kernels: launched.
        collective, sent_bytes: of tensor parallelism that no product hides: of the embedding.
    """

    products: tuple[Matrix, ...] = ()
    score_flops: float = 0.0
    num_scores: float = 0.0
    num_bytes: float = 0.0
    num_logits: float = 0.0
    gathered_bytes: float = 0.0
    weights: float = 0.0
    kernels: float = 0.0
    collective: Collective = ""
    sent_bytes: float = 0.0


def traffic_bytes(work: Work, system: System) -> float:
    """Read and written by all kernels but the products."""
    scores, logits = system.score_bytes * work.num_scores, system.logit_bytes * work.num_logits
    return work.num_bytes + scores + logits + system.gradient_bytes_moved * work.weights


def tokens(layout: Layout, sequence: int) -> int:
    """Of a micro-batch on one device, between its products all of them."""
    return layout.micro_batch * -(-sequence // layout.context)


@lru_cache(maxsize=4096)
def layer_forward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    """A decoder layer: norm, qkv, attention, o_proj; norm, gate and up, activation, down."""
    a, t, count = architecture, layout.tensor, tokens(layout, sequence)
    own = count / t if layout.sequence_parallel else count
    traffic = (
        system.whole_tensors * own * a.hidden_size
        + system.attention_tensors * count * (a.queries + 2 * a.keys) / t
        + system.mlp_tensors * count * (a.widened + a.intermediate_size) / t
    )
    scores = count * sequence * a.num_attention_heads / t
    return Work(
        products=tuple(_forward(*each, layout, count) for each in _products(a, t)),
        score_flops=4.0 * scores * a.head_dim * (0.5 if system.skips_masked else 1.0),
        num_scores=scores if system.score_bytes else 0.0,
        num_bytes=ELEMENT * traffic,
        gathered_bytes=ELEMENT * 2.0 * count * layout.context * a.keys / t if layout.context > 1 else 0.0,
        kernels=system.kernels,
    )


@lru_cache(maxsize=4096)
def layer_backward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    """Two products for each of the forward pass: of the input's gradient, and of the weight's."""
    forward, count = layer_forward(architecture, layout, sequence, system), tokens(layout, sequence)
    products: list[Matrix] = []
    for each in _products(architecture, layout.tensor):
        products += _backward(*each, layout, count, system)
    return Work(
        products=tuple(products),
        score_flops=system.attention_backward * forward.score_flops,
        num_scores=BACKWARD_TRAFFIC * forward.num_scores,
        num_bytes=BACKWARD_TRAFFIC * forward.num_bytes,
        gathered_bytes=2 * forward.gathered_bytes,
        weights=architecture.matrices_of_layer / layout.tensor,
        kernels=BACKWARD_KERNELS * system.kernels,
    )


def _products(a: Architecture, t: int) -> list[tuple[bool, int, int]]:
    """(whether its columns are divided, else its rows; in_features; out_features)."""
    return [
        (True, a.hidden_size, (a.queries + 2 * a.keys) // t),
        (False, a.queries // t, a.hidden_size),
        (True, a.hidden_size, a.widened // t),
        (False, a.intermediate_size // t, a.hidden_size),
    ]


def _forward(is_column: bool, in_features: int, out_features: int, layout: Layout, count: int) -> Matrix:
    """A gather stands before divided columns with sequence parallelism. A sum always follows divided rows."""
    if layout.tensor == 1 or (is_column and not layout.sequence_parallel):
        return Matrix(count, in_features, out_features)
    sent = float(ELEMENT * count * (in_features if is_column else out_features))
    return Matrix(count, in_features, out_features, "gather" if layout.sequence_parallel else "all_reduce", sent)


def _backward(
    is_column: bool, in_features: int, out_features: int, layout: Layout, count: int, system: System
) -> list[Matrix]:
    """The dual collectives. Some systems gather a column product's input once more, for the weight's gradient."""
    whole = float(ELEMENT * count * (in_features if is_column else out_features))
    to_input: tuple[Collective, float] = ("", 0.0)
    to_weight: tuple[Collective, float] = ("", 0.0)
    if layout.tensor > 1 and layout.sequence_parallel:
        to_input = ("gather", whole)
        to_weight = ("gather", whole) if is_column and system.gathers_again else to_weight
    elif layout.tensor > 1 and is_column:
        to_input = ("all_reduce", whole)
    return [
        Matrix(count, out_features, in_features, *to_input),
        Matrix(in_features, count, out_features, *to_weight),
    ]


@lru_cache(maxsize=4096)
def head_forward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    """The last norm, the product with this device's part of the vocabulary, and the loss."""
    a, count = architecture, tokens(layout, sequence)
    vocab = -(-a.vocab_size // layout.tensor)
    return Work(
        products=(_forward(True, a.hidden_size, vocab, layout, count),),
        num_bytes=ELEMENT * 2.0 * count * a.hidden_size,
        num_logits=0.5 * count * vocab,
        kernels=0.5 * system.kernels,
    )


@lru_cache(maxsize=4096)
def head_backward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    a, count = architecture, tokens(layout, sequence)
    vocab = -(-a.vocab_size // layout.tensor)
    return Work(
        products=tuple(_backward(True, a.hidden_size, vocab, layout, count, system)),
        num_bytes=ELEMENT * 3.0 * count * a.hidden_size,
        num_logits=0.5 * count * vocab,
        weights=float(a.hidden_size * vocab),
        kernels=0.5 * system.kernels,
    )


@lru_cache(maxsize=4096)
def embedding_forward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    """Rows are looked up: read and written. Each rank of tensor has some rows, and their results are added."""
    whole = float(ELEMENT * tokens(layout, sequence) * architecture.hidden_size)
    added: Collective = "gather" if layout.sequence_parallel else "all_reduce"
    if layout.tensor == 1:
        return Work(num_bytes=2 * whole, kernels=3)
    return Work(num_bytes=2 * whole, kernels=3, collective=added, sent_bytes=whole)


@lru_cache(maxsize=4096)
def embedding_backward(architecture: Architecture, layout: Layout, sequence: int, system: System) -> Work:
    """Its gradient is as large as the table, whatever the number of tokens. Ranks that divide tokens gather theirs."""
    a = architecture
    whole = float(ELEMENT * tokens(layout, sequence) * a.hidden_size)
    gathers = layout.tensor > 1 and layout.sequence_parallel
    return Work(
        num_bytes=2 * whole,
        weights=a.hidden_size * a.vocab_size / layout.tensor,
        kernels=3,
        collective="gather" if gathers else "",
        sent_bytes=whole if gathers else 0.0,
    )
