"""What a micro-batch's forward pass keeps for its backward pass, in bytes: tensor by tensor, as each kernel saves them.

Three kinds of kernels keep different things. A fused one keeps what it reads. One composed of the framework's ops keeps
the intermediate values, in float32, and in 16-bit arithmetic a rounded copy of each weight. A device's own op keeps
what it reads and the copies that bring its arguments into the form that it takes.

Shapes as in `model/llama.py`: T are all tokens of a rank's micro-batch, and `own` those of it that the rank has between
products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COMPOSED, DEVICE, FUSED = "composed", "device", "fused"
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Sizes:
    """Of one rank's part of a micro-batch.

    Args:
        batch_size, seq_len: rows and their tokens.
        own: tokens of this rank between products; all without sequence parallelism.
        hidden, inner, vocab: widths; the last two are this rank's part.
        heads, key_value_heads: of this rank.
        head_dim: of each.
        element: bytes of an activation's element.
        is_divided: several ranks have parts of each layer.
        kinds: of the kernel that serves each op, by the op's name.
        is_frozen: only an adapter is trained: no matrix of the model has a gradient.
    """

    batch_size: int
    seq_len: int
    own: int
    hidden: int
    inner: int
    vocab: int
    heads: int
    key_value_heads: int
    head_dim: int
    element: int
    is_divided: bool
    kinds: Mapping[str, str]
    is_frozen: bool = False

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def stream(self) -> int:
        """Bytes of the residual stream."""
        return self.own * self.hidden * self.element

    @property
    def rounds_weights(self) -> bool:
        """Whether a composition computes with copies of the float32 weights."""
        return self.element < FLOAT32


def of_attention(sizes: Sizes, is_first: bool, recompute: str | None = None) -> int:
    """A layer's first half; the first layer of a model or chunk has no residual stream to add."""
    s = sizes
    norm = _first_norm(s) if is_first else _add_norm(s)
    if recompute == "full_attn":
        return norm + s.stream  # the region's input
    if recompute == "core_attn":
        return norm + _projections(s) + s.tokens * (s.queries + 2 * s.keys) * s.element
    return norm + _projections(s) + _core(s)


def of_mlp(sizes: Sizes) -> int:
    """A layer's second half."""
    s = sizes
    products = _product(s, "column", s.hidden, 2 * s.inner) + _product(s, "row", s.inner, s.hidden)
    return _add_norm(s) + products + _swiglu(s)


def of_layer_inputs(sizes: Sizes, is_first: bool) -> int:
    """All that a layer keeps which is computed again."""
    return sizes.stream * (1 if is_first else 2)


def of_embedding(sizes: Sizes) -> int:
    """The ids; of a divided vocabulary also which rows are this rank's, a byte an element."""
    return sizes.tokens * (8 + (sizes.hidden if sizes.is_divided else 0))


def of_head(sizes: Sizes) -> int:
    """The last norm and the loss. A composition holds the shifted logits twice: for their sum and for the label's."""
    s = sizes
    if s.kinds["fused_linear_cross_entropy"] != COMPOSED:
        of_weight = 0 if s.is_frozen else s.hidden * s.vocab * FLOAT32
        return _add_norm(s) + s.tokens * s.hidden * s.element + of_weight  # gradients are taken in the forward pass
    weight = s.hidden * s.vocab * FLOAT32 if s.rounds_weights else 0
    return _add_norm(s) + s.tokens * (s.hidden + 2 * s.vocab) * FLOAT32 + weight


def of_attention_backward(sizes: Sizes, recompute: str | None = None) -> int:
    """What attention's backward pass holds beside what is kept, at its worst: what is computed again, gradients of
    queries, keys, values and output, and of a composed one about three of the scores' size."""
    s = sizes
    gradients = s.tokens * 2 * (s.queries + s.keys) * s.element + s.queries * s.hidden * FLOAT32
    if s.kinds["flash_attention"] == COMPOSED:
        gradients += 3 * s.tokens * s.heads * s.seq_len * FLOAT32
    if recompute is None:
        return gradients
    again = _projections(s) if recompute == "full_attn" else 0
    return again + max(_computing(s), _core(s) + gradients)


def of_layer_again(sizes: Sizes, is_first: bool) -> int:
    """What a layer that is computed again holds beside its inputs, at its worst: in its MLP's backward pass, or while a
    composed attention is computed."""
    attention = of_attention(sizes, is_first)
    computing = attention - _core(sizes) + _computing(sizes)
    return max(attention + of_mlp(sizes) + of_mlp_backward(sizes), computing)


def of_mlp_backward(sizes: Sizes) -> int:
    """What the MLP's backward pass holds beside what is kept, at its worst: about four gradients inside a composed
    swiglu (two of a fused one), and that of down_proj's weight, which came before."""
    s = sizes
    width = 4 * FLOAT32 if s.kinds["swiglu"] == COMPOSED else 2 * s.element
    return s.tokens * s.inner * width + (0 if s.is_frozen else s.inner * s.hidden * FLOAT32)


def of_head_backward(sizes: Sizes) -> int:
    """What the loss's backward pass holds beside what is kept: a composition's gradients of the logits."""
    s = sizes
    return 2 * s.tokens * s.vocab * FLOAT32 if s.kinds["fused_linear_cross_entropy"] == COMPOSED else 0


def _product(s: Sizes, side: str, in_features: int, out_features: int) -> int:
    kind = s.kinds[side]
    if kind != COMPOSED:
        return s.tokens * in_features * s.element
    weight = in_features * out_features * FLOAT32 if s.rounds_weights else 0
    return s.tokens * in_features * FLOAT32 + weight


def _projections(s: Sizes) -> int:
    """To queries, keys and values, and back."""
    return _product(s, "column", s.hidden, s.queries + 2 * s.keys) + _product(s, "row", s.queries, s.hidden)


def _core(s: Sizes) -> int:
    return _rope(s) + _attention(s)


def _computing(s: Sizes) -> int:
    """The most that `_core` has while it is computed, all of it included. A composed attention looks for values that
    are not finite: measured on the emulated npu it had five tensors of the scores' size and 24 of the queries'."""
    if s.kinds["flash_attention"] != COMPOSED:
        return _core(s)
    return s.tokens * (5 * s.heads * s.seq_len + 24 * s.queries) * FLOAT32


def _first_norm(s: Sizes) -> int:
    kind = s.kinds["fusion_rms_norm"]
    if kind == COMPOSED:
        return _normalised(s)
    return s.own * (s.hidden * (FLOAT32 if kind == DEVICE else s.element) + FLOAT32)


def _add_norm(s: Sizes) -> int:
    """Fused: the stream and a number a row. The output is the next product's input, and gathered there if divided."""
    if s.kinds["fusion_add_rms_norm"] == COMPOSED:
        return _normalised(s)
    return s.stream * (2 if s.own < s.tokens else 1) + s.own * FLOAT32


def _normalised(s: Sizes) -> int:
    """The sum, scaled values, and their product with 1 / root; two numbers a row."""
    return s.own * (3 * s.hidden + 2) * FLOAT32


def _rope(s: Sizes) -> int:
    """The angles' cosine and sine for every token. A device's op takes both halves of them."""
    kind = s.kinds["fusion_rope"]
    width = {FUSED: 0, COMPOSED: s.head_dim // 2, DEVICE: s.head_dim}[kind]
    return s.tokens * 2 * width * FLOAT32


def _attention(s: Sizes) -> int:
    kind = s.kinds["flash_attention"]
    if kind == FUSED:
        return s.tokens * ((s.queries + 2 * s.keys) * s.element + s.heads * FLOAT32)
    if kind == DEVICE:  # the mask as bytes, and a vendor's two statistics of eight numbers a row and head
        masked = s.queries + 2 * s.keys + s.seq_len
        tensors = (2 * s.queries + 2 * s.keys) * s.element
        return s.tokens * (tensors + masked + 2 * 8 * s.heads * FLOAT32)
    scores = s.heads * s.seq_len * (2 * FLOAT32 + 3)
    return s.tokens * (scores + s.queries * (2 * FLOAT32 + 1) + s.keys * (2 * FLOAT32 + 2))


def _swiglu(s: Sizes) -> int:
    if s.kinds["swiglu"] == COMPOSED:
        return s.tokens * 8 * s.inner * FLOAT32
    return s.tokens * 2 * s.inner * s.element
