"""flash_attention: the spec."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.spec import (
    UNKNOWN,
    Array,
    Benchmark,
    Case,
    Cost,
    Input,
    InvalidCase,
    OpSpec,
    Output,
    Rounding,
    Tolerance,
    TwiceComposition,
    exact,
)


def flash_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    attn_mask: Any = None,
    startend_row_indices: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Scaled dot-product attention without the scores ever being held whole.

        scores = scale * q k^T + attn_mask,  out = softmax(scores, axis=kv_len) v,  lse = logsumexp(scores, axis=kv_len)

    Args:
        q: [batch_size, q_len, num_heads, head_dim], float32 / bfloat16 / float16.
        k: [batch_size, kv_len, num_key_value_heads, head_dim], dtype of q. num_heads is a multiple of
            num_key_value_heads; query head h reads key head h // (num_heads // num_key_value_heads).
        v: as k.
        causal: query i sees keys j <= i + kv_len - q_len (aligned bottom-right).
        attn_mask: [batch_size or 1, num_heads or 1, q_len or 1, kv_len]; bool (True: attend), or floating (dtype of q,
            or float32) added to the scores. Only False and -inf drop a key; finite minima are ordinary numbers.
            Combines with causal: both must allow. A dropped key has no influence, not even NaN. Not differentiated: a
            floating mask that requires a gradient is refused, where it is an argument of the call and no value of a
            traced graph.
        startend_row_indices: [batch_size, num_key_value_heads or 1, kv_len, 1, 2 or 4] int32: for each key, the
            queries that do not see it. causal: rows [a, q_len), or [a, b). Not causal: [a, q_len) and [0, b), or
            [a, b) and [c, d). For packed documents and windows; needs q_len == kv_len, excludes attn_mask.
        scale: factor of the scores; default 1 / sqrt(head_dim).
        return_lse: also return lse, which is differentiable.

    Returns:
        out [batch_size, q_len, num_heads, head_dim], dtype of q; with return_lse, (out, lse), lse
        [batch_size, num_heads, q_len] float32. Softmax and sums in float32. A row that sees no key gives zeros, lse
        -inf and zero gradients.

    Raises:
        ValueError: a shape or dtype does not fit, num_heads is no multiple of num_key_value_heads,
            startend_row_indices with attn_mask, with q_len != kv_len or with the wrong number of columns.

    Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2. startend_row_indices: Wang et al. 2024, arXiv:2410.01359, as
    in paddle.nn.functional.flashmask_attention.
    """


def hidden_by_rows(startend_row_indices: Array, causal: bool, q_len: int) -> Array:
    """[batch_size, num_key_value_heads or 1, q_len, kv_len]: True where the bounds hide the key from the query."""
    row = np.arange(q_len)[:, None]
    bounds = [startend_row_indices[..., None, :, column] for column in range(startend_row_indices.shape[-1])]
    below = row >= bounds[0]
    if len(bounds) == 1:
        return np.asarray(below)
    if len(bounds) == 4:
        return np.asarray((below & (row < bounds[1])) | ((row >= bounds[2]) & (row < bounds[3])))
    return np.asarray(below & (row < bounds[1]) if causal else below | (row < bounds[1]))


def dense_bias(q: Array, k: Array, causal: bool, attn_mask: Array | None, startend_row_indices: Array | None) -> Array:
    """[batch_size, num_heads, q_len, kv_len]: every mask as one addend, -inf where the key is dropped."""
    batch_size, q_len, num_heads, _ = q.shape
    kv_len = k.shape[1]
    bias = np.zeros((1, 1, q_len, kv_len))
    if attn_mask is not None:
        bias = np.where(attn_mask, 0.0, -np.inf) if attn_mask.dtype == bool else attn_mask
    if startend_row_indices is not None:
        hidden = hidden_by_rows(startend_row_indices, causal, q_len)
        bias = np.where(np.repeat(hidden, num_heads // hidden.shape[1], axis=1), -np.inf, bias)
    if causal:
        bias = np.where(np.arange(kv_len) <= np.arange(q_len)[:, None] + kv_len - q_len, bias, -np.inf)
    return np.broadcast_to(bias, (batch_size, num_heads, q_len, kv_len))


def arithmetic(rounding: Rounding) -> Rounding:
    """The oracle computes in float64, a composition in float32 whatever it stores: exact sums would flatter it."""
    return exact if rounding is exact else lambda array: rounding(array).astype(np.float32)


def softmax(scores: Array, dropped: Array, step: Rounding) -> tuple[Array, Array]:
    """Probabilities, 0 where dropped, and log-sum-exp of each row; zeros and -inf for a row of dropped keys."""
    scores = np.where(dropped, -np.inf, scores)
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(top == -np.inf, 0, top)
    weights = np.where(dropped, 0, step(np.exp(step(scores - top))))
    total = step(np.sum(weights, axis=-1, keepdims=True))
    empty = total == 0
    total = np.where(empty, 1, total)
    lse = np.where(empty, -np.inf, step(step(np.log(total)) + top))
    return np.where(dropped, 0, step(weights / total)), lse[..., 0]


def attended_product(weights: Array, dropped: Array, rows: Array) -> Array:
    """weights @ rows without the dropped pairs, whose weight is 0: 0 times NaN would be NaN."""
    finite = np.all(np.isfinite(rows), axis=-1, keepdims=True)
    product = weights @ np.where(finite, rows, 0)
    for index in np.flatnonzero(~finite).tolist():
        product = product + np.where(dropped[:, index, None], 0, weights[:, index, None] * rows[index])
    return np.asarray(product)


def heads(q: Array, k: Array) -> Iterator[tuple[int, int, int]]:
    """(batch, query head, key head): one head at a time keeps the reference's memory at q_len x kv_len."""
    group = q.shape[2] // k.shape[2]
    return ((b, h, h // group) for b in range(q.shape[0]) for h in range(q.shape[2]))


@np.errstate(invalid="ignore")  # what a dropped key holds may be NaN
def reference(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    attn_mask: Array | None = None,
    startend_row_indices: Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    rounding: Rounding = exact,
) -> Any:
    step = arithmetic(rounding)
    bias = step(dense_bias(q, k, causal, attn_mask, startend_row_indices))
    scaled, k, v = step(q * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)), step(k), step(v)
    out = np.zeros(q.shape)
    lse = np.zeros((q.shape[0], q.shape[2], q.shape[1]))
    for b, h, g in heads(q, k):
        dropped = bias[b, h] == -np.inf
        scores = step(step(scaled[b, :, h] @ k[b, :, g].T) + bias[b, h])
        probabilities, lse[b, h] = softmax(scores, dropped, step)
        out[b, :, h] = step(attended_product(probabilities, dropped, v[b, :, g]))
    return (out, lse) if return_lse else out


@np.errstate(invalid="ignore")
def reference_vjp(
    grad_outputs: Any,
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    attn_mask: Array | None = None,
    startend_row_indices: Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    rounding: Rounding = exact,
) -> dict[str, Array]:
    """d scores = p (dp - sum(out d out) + d lse) with dp = d out v^T: algorithm 2, which cancels as kernels do."""
    step = arithmetic(rounding)
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias = step(dense_bias(q, k, causal, attn_mask, startend_row_indices))
    dout, dlse = grad_outputs if return_lse else (grad_outputs, np.zeros((q.shape[0], q.shape[2], q.shape[1])))
    scaled, k, v, dout, dlse = step(q * factor), step(k), step(v), step(dout), step(dlse)
    dq, dk, dv = (step(np.zeros(x.shape)) for x in (q, k, v))
    for b, h, g in heads(q, k):
        dropped = bias[b, h] == -np.inf
        p, _ = softmax(step(step(scaled[b, :, h] @ k[b, :, g].T) + bias[b, h]), dropped, step)
        dp = step(dout[b, :, h] @ v[b, :, g].T)
        out = step(attended_product(p, dropped, v[b, :, g]))
        mean = step(np.sum(step(dout[b, :, h] * out), axis=-1, keepdims=True))
        dscores = np.where(dropped, 0, step(p * step(step(dp - mean) + dlse[b, h][:, None])))
        dq[b, :, h] = step(step(attended_product(dscores, dropped, k[b, :, g])) * factor)
        dk[b, :, g] = step(dk[b, :, g] + step(attended_product(dscores.T, dropped.T, scaled[b, :, h])))
        dv[b, :, g] = step(dv[b, :, g] + step(attended_product(p.T, dropped.T, dout[b, :, h])))
    return {"q": dq, "k": dk, "v": dv}


Mask = Callable[[np.random.Generator], dict[str, Any]]


def case(
    name: str,
    *,
    batch_size: int = 2,
    q_len: int = 17,
    kv_len: int | None = None,
    num_heads: int = 2,
    num_key_value_heads: int = 2,
    head_dim: int = 16,
    mask: Mask = lambda rng: {},
    offset: float | None = None,
    not_finite: tuple[int, ...] = (),
    llama: bool = False,
    **kwargs: Any,
) -> Case:
    """not_finite: keys whose k and v hold NaN and inf, which a mask must drop from every query."""
    keys = q_len if kv_len is None else kv_len

    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        q = rng.standard_normal((batch_size, q_len, num_heads, head_dim))
        k = rng.standard_normal((batch_size, keys, num_key_value_heads, head_dim))
        v = rng.standard_normal((batch_size, keys, num_key_value_heads, head_dim))
        if offset is not None:
            q[..., 0] = k[..., 0] = offset
        for key, number in zip(not_finite, itertools.cycle((math.nan, math.inf, -math.inf)), strict=False):
            k[:, key] = v[:, key, :, ::2] = number
        return {"q": q, "k": k, "v": v, **mask(rng), **kwargs}

    return Case(name, arguments, llama)


def bool_mask(*shape: int, empty_rows: tuple[int, ...] = ()) -> Mask:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        mask = rng.random(shape) < 0.7
        mask[:, :, list(empty_rows)] = False
        return {"attn_mask": mask}

    return make


def float_mask(*shape: int, low: float = -np.inf, share: float = 0.3, low_rows: tuple[int, ...] = ()) -> Mask:
    """A random bias; a share of the elements, and whole rows, are `low`; key 0 is only so in those rows."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        mask = np.where(rng.random(shape) < share, low, rng.standard_normal(shape))
        mask[..., 0] = 0.5
        mask[:, :, list(low_rows)] = low
        return {"attn_mask": mask}

    return make


def without_keys(keys: tuple[int, ...], *shape: int, floating: bool = False) -> Mask:
    """No query attends these keys."""
    mask: Array = np.ones(shape, dtype=bool)
    mask[..., list(keys)] = False
    bias = np.where(mask, np.linspace(-1, 1, mask.size).reshape(shape), -np.inf)
    return lambda rng: {"attn_mask": bias if floating else mask}


def left_padding(batch_size: int, length: int) -> Mask:
    """Row b of the batch starts with b padding tokens; with causal, those rows see nothing."""
    real = np.arange(length) >= np.arange(batch_size)[:, None, None, None]
    return lambda rng: {"attn_mask": np.broadcast_to(real, (batch_size, 1, length, length)).copy()}


def row_indices(*columns: list[int], num_heads: int = 1, batch_size: int = 2) -> Mask:
    indices = np.array(columns, dtype=np.int32).T
    return lambda rng: {"startend_row_indices": np.tile(indices, (batch_size, num_heads, 1, 1))}


def documents(lengths: tuple[int, ...], causal: bool = True, batch_size: int = 2) -> Mask:
    """Packed documents: each key is hidden from the rows after its document, and, not causal, from those before."""
    ends = [int(end) for end in np.repeat(np.cumsum(lengths), lengths)]
    starts = [int(start) for start in np.repeat(np.cumsum(lengths) - lengths, lengths)]
    columns = [ends] if causal else [ends, starts]
    return row_indices(*columns, batch_size=batch_size)


def per_head_documents(*lengths: tuple[int, ...]) -> Mask:
    columns = [np.repeat(np.cumsum(each), each) for each in lengths]
    indices = np.stack(columns).astype(np.int32)[None, :, :, None]
    return lambda rng: {"startend_row_indices": np.tile(indices, (2, 1, 1, 1))}


PADDING = (3, 9, 10, 16)
# A whole row of BFLOAT16_MIN would absorb its scores, in float64 too: such a row has no gradient to check.
FLOAT16_MIN = -65504.0
BFLOAT16_MIN = -(2.0**128 - 2.0**120)  # -inf once rounded to float16: there it drops

CASES = (
    *(case(f"S{length}", q_len=length) for length in (15, 16, 17, 31, 33, 67)),
    *(case(f"S{length}-causal", q_len=length, causal=True) for length in (15, 16, 17, 31, 33, 67)),
    case("S1", batch_size=16, q_len=1, num_heads=8, num_key_value_heads=8),
    *(case(f"D{dim}", batch_size=1, q_len=19, head_dim=dim, causal=True) for dim in (1, 2, 15, 17, 31, 33, 64, 127)),
    case("D256", batch_size=1, q_len=9, head_dim=256),
    case("D1-wide", q_len=33, num_heads=4, num_key_value_heads=4, head_dim=1),
    case("GQA-4:2", num_heads=4, causal=True),
    case("MQA-5:1", num_heads=5, num_key_value_heads=1, causal=True),
    case("Sq1-Skv37-causal", q_len=1, kv_len=37, num_heads=4, causal=True),
    case("Sq5-Skv37-causal", q_len=5, kv_len=37, causal=True),
    case("Sq37-Skv5-causal", q_len=37, kv_len=5, causal=True),
    case("Sq37-Skv5", q_len=37, kv_len=5),
    case("Sq3-Skv130", q_len=3, kv_len=130, batch_size=1),
    case("scale-0.3", scale=0.3),
    case("scale-negative", scale=-0.1, causal=True),
    case("scores-of-100", q_len=33, offset=20.0, causal=True),
    case("bool", mask=bool_mask(2, 2, 17, 17)),
    case("bool-one-for-all", mask=bool_mask(1, 1, 17, 17)),
    case("bool-causal", mask=bool_mask(2, 1, 17, 17), causal=True),
    case("bool-causal-Sq9-Skv21", q_len=9, kv_len=21, mask=bool_mask(2, 1, 9, 21), causal=True),
    case("bool-GQA", num_heads=4, mask=bool_mask(1, 4, 17, 17)),
    case("bool-empty-rows", mask=bool_mask(2, 2, 17, 17, empty_rows=(0, 5, 16))),
    case("bool-all-false", mask=bool_mask(1, 1, 17, 17, empty_rows=tuple(range(17)))),
    case("left-padding-causal", batch_size=4, mask=left_padding(4, 17), causal=True),
    case("float", mask=float_mask(2, 2, 17, 17, share=0.0)),
    case("float-causal-GQA", num_heads=6, mask=float_mask(1, 6, 17, 17, share=0.0), causal=True),
    case("float-inf", mask=float_mask(2, 1, 17, 17)),
    case("float-inf-rows", mask=float_mask(2, 1, 17, 17, low_rows=(0, 9))),
    case("float-minimum-float16", mask=float_mask(2, 1, 17, 17, low=FLOAT16_MIN, low_rows=(3, 7))),
    case("float-minimum-bfloat16", mask=float_mask(2, 1, 17, 17, low=BFLOAT16_MIN)),
    case("float-minimum-causal", mask=float_mask(1, 1, 17, 17, low=BFLOAT16_MIN), causal=True),
    case("documents", mask=documents((5, 9, 3)), causal=True),
    case("documents-GQA", q_len=33, num_heads=4, mask=documents((1, 15, 16, 1)), causal=True),
    case("documents-not-causal", mask=documents((5, 9, 3), causal=False)),
    case("documents-per-head", num_heads=4, mask=per_head_documents((5, 9, 3), (16, 1)), causal=True),
    case("rows-hidden-from-8", mask=row_indices([8] * 17), causal=True),
    case("rows-2-causal", mask=row_indices([4] * 4 + [17] * 13, [7] * 4 + [17] * 13), causal=True),
    case(
        "rows-4",
        mask=row_indices([17, 17, *range(4, 17), 17, 17], [17] * 17, [0] * 4 + [2] * 13, [0] * 4 + [*range(3, 16)]),
    ),
    case("dropped-nan-bool", mask=without_keys(PADDING, 2, 1, 17, 17), not_finite=PADDING, return_lse=True),
    case(
        "dropped-nan-bool-causal-GQA",
        num_heads=4,
        mask=without_keys(PADDING, 1, 1, 17, 17),
        not_finite=PADDING,
        causal=True,
    ),
    case("dropped-nan-float", mask=without_keys(PADDING, 1, 2, 17, 17, floating=True), not_finite=PADDING),
    case(
        "dropped-nan-Sq1-Skv70", q_len=1, kv_len=70, mask=without_keys((2, 64, 69), 1, 1, 1, 70), not_finite=(2, 64, 69)
    ),
    case("dropped-nan-rows", mask=row_indices([17] * 13 + [0] * 4), not_finite=(13, 14, 15, 16), causal=True),
    case("padding-bool", mask=without_keys(PADDING, 2, 1, 1, 17)),
    case("padding-bool-causal-GQA", num_heads=4, mask=without_keys(PADDING, 2, 1, 1, 17), causal=True),
    case("padding-float-Sq5-Skv37", q_len=5, kv_len=37, mask=without_keys(PADDING, 1, 2, 1, 37, floating=True)),
    case("padding-nan", mask=without_keys(PADDING, 2, 1, 1, 17), not_finite=PADDING, return_lse=True),
    case("padding-all", mask=bool_mask(2, 1, 1, 17, empty_rows=(0,)), return_lse=True),
    case("lse", return_lse=True),
    case("lse-causal-Sq9-Skv5", q_len=9, kv_len=5, causal=True, return_lse=True),
    case("lse-GQA-documents", num_heads=4, mask=documents((5, 12)), causal=True, return_lse=True),
    case("lse-empty-rows", mask=bool_mask(2, 1, 17, 17, empty_rows=(0, 5)), return_lse=True),
    case("no-batch", batch_size=0),
    case("no-queries", q_len=0, kv_len=5),
    case("no-keys", q_len=5, kv_len=0, return_lse=True),
    case(
        "B1xS640xH40xD128-causal",
        batch_size=1,
        q_len=640,  # three blocks of keys, the last one partial
        num_heads=40,
        num_key_value_heads=40,
        head_dim=128,
        causal=True,
        llama=True,
    ),
)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"q": np.ones((2, 6, 4, 8)), "k": np.ones((2, 6, 2, 8)), "v": np.ones((2, 6, 2, 8))}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def indices(*shape: int) -> Array:
    return np.zeros(shape, dtype=np.int32)


NO_DIMS = np.ones((2, 6, 2, 0))

INVALID_CASES = (
    invalid("q-rank", r"q must be \[batch_size, q_len, num_heads, head_dim\]", q=np.ones((6, 4, 8))),
    invalid("q-integer", "q must be of dtype float32, bfloat16 or float16", q=indices(2, 6, 4, 8)),
    invalid("k-head-dim", "k must be .* with head_dim = 8", k=np.ones((2, 6, 2, 7))),
    invalid("k-batch", "k must be .* with batch_size = 2", k=np.ones((3, 6, 2, 8))),
    invalid("k-none", "k must be a tensor", TypeError, k=None),
    invalid("v-length", "v must be .* with kv_len = 6", v=np.ones((2, 5, 2, 8))),
    invalid("v-heads", "v must be .* with num_key_value_heads = 2", v=np.ones((2, 6, 4, 8))),
    invalid("heads", "q must be of num_heads a multiple of 3", k=np.ones((2, 6, 3, 8)), v=np.ones((2, 6, 3, 8))),
    invalid("no-heads", "k must be of at least 1 head", k=np.ones((2, 6, 0, 8)), v=np.ones((2, 6, 0, 8))),
    invalid("no-head-dim", "q must be of head_dim at least 1", q=NO_DIMS, k=NO_DIMS, v=NO_DIMS),
    invalid("mask-rank", r"attn_mask must be \[batch_size\|1, num_heads\|1, q_len", attn_mask=np.ones((6, 6))),
    invalid("mask-heads", "attn_mask must be .* with num_heads = 4", attn_mask=np.ones((2, 2, 6, 6))),
    invalid(
        "mask-queries",
        r"attn_mask must be .* with q_len = 6 .*\[batch_size, 1, 1, kv_len\]",
        attn_mask=np.ones((2, 1, 3, 6)),
    ),
    invalid("mask-length", "attn_mask must be .* with kv_len = 6", attn_mask=np.ones((2, 1, 6, 1))),
    invalid(
        "mask-integer",
        'attn_mask must be of dtype .*mask.astype."bool".*True = attend',
        attn_mask=indices(2, 1, 6, 6),
    ),
    invalid(
        "both-masks",
        "startend_row_indices must be None with attn_mask",
        causal=True,
        attn_mask=np.ones((2, 1, 6, 6)),
        startend_row_indices=indices(2, 1, 6, 1),
    ),
    invalid(
        "indices-int64",
        "startend_row_indices must be of dtype int32",
        causal=True,
        startend_row_indices=np.zeros((2, 1, 6, 1), dtype=np.int64),
    ),
    invalid(
        "indices-batch",
        "startend_row_indices must be .* with batch_size = 2",
        causal=True,
        startend_row_indices=indices(1, 1, 6, 1),
    ),
    invalid(
        "indices-heads",
        "startend_row_indices must be .* with num_key_value_heads = 2",
        causal=True,
        startend_row_indices=indices(2, 4, 6, 1),
    ),
    invalid(
        "indices-causal-4",
        "startend_row_indices must be of 1 or 2 columns",
        causal=True,
        startend_row_indices=indices(2, 1, 6, 4),
    ),
    invalid(
        "indices-not-causal-1",
        "startend_row_indices must be of 2 or 4 columns",
        startend_row_indices=indices(2, 1, 6, 1),
    ),
    invalid(
        "indices-Sq-Skv",
        "startend_row_indices must be None with q_len != kv_len",
        causal=True,
        q=np.ones((2, 5, 4, 8)),
        startend_row_indices=indices(2, 1, 6, 1),
    ),
    invalid("scale-nan", "scale must be finite", scale=float("nan")),
)


def causal_pairs(q_len: int, kv_len: int) -> float:
    """How many (query, key) pairs the bottom-right triangle holds."""
    seen = min(q_len, kv_len)
    return seen * kv_len - seen * (seen - 1) / 2


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """Two products of 2 head_dim operations for each pair that is attended; the backward takes five more.

    `dims` also holds causal, and pairs where a mask decides (of one head): else they are those of the triangle or all.
    Source: Dao 2023, arXiv:2307.08691, section 4.1: 4 q_len kv_len head_dim num_heads, half of it when causal, and 2.5
    times that for the backward.
    """
    q_len, kv_len, head_dim = dims["q_len"], dims["kv_len"], dims["head_dim"]
    pairs = dims.get("pairs") or (causal_pairs(q_len, kv_len) if dims.get("causal") else q_len * kv_len)
    queries = dims["batch_size"] * q_len * dims["num_heads"] * head_dim
    keys = dims["batch_size"] * kv_len * dims["num_key_value_heads"] * head_dim
    flops = 4.0 * dims["batch_size"] * dims["num_heads"] * head_dim * pairs
    if not training:
        return Cost(flops, itemsize * (queries + 2 * keys), itemsize * queries)
    return Cost(3.5 * flops, itemsize * (4 * queries + 4 * keys), itemsize * (2 * queries + 2 * keys))


def timed(name: str, length: int, pairs: float | None = None, **kwargs: Any) -> Benchmark:
    sizes = {"num_heads": 40, "num_key_value_heads": 40, "head_dim": 128, "causal": True, **kwargs}
    made = case(name, batch_size=1, q_len=length, llama=True, **sizes)
    scores = 4.0 * sizes["num_heads"] * length**2  # float32; six of them with the backward
    return Benchmark(made, ("bfloat16",), {} if pairs is None else {"pairs": pairs}, composition_bytes=6 * scores)


def timed_documents(name: str, *lengths: int) -> Benchmark:
    """Packed causal documents: only the triangle of each is attended."""
    attended = sum(causal_pairs(length, length) for length in lengths)
    return timed(name, sum(lengths), attended, mask=documents(lengths, batch_size=1))


BENCHMARKS = (
    *(replace(timed(f"S{length}-causal", length), dtypes=FLOATING[:2]) for length in (1024, 4096)),
    timed("S1024", 1024, causal=False),
    timed("S1024-GQA-40:8-causal", 1024, num_key_value_heads=8),
    *(
        timed(f"S1024-D{dim}-causal", 1024, head_dim=dim, num_heads=5120 // dim, num_key_value_heads=5120 // dim)
        for dim in (64, 80, 256)
    ),
    timed("S1024-bool-mask", 1024, causal=False, mask=bool_mask(1, 1, 1024, 1024)),
    timed("S1024-float-mask", 1024, causal=False, mask=float_mask(1, 1, 1024, 1024)),
    *(timed(f"S{length}-causal", length) for length in (777, 1023)),
    timed("Sq512-Skv1500-causal", 512, kv_len=1500),
    timed_documents("S4096-documents-of-256", *[256] * 16),
    timed_documents("S4096-documents-of-1024", *[1024] * 4),
    timed_documents("S4096-documents-mixed", 100, 900, 30, 1500, 1, 565, 700, 300),
    *(timed(f"Sq{length}-Skv1024-causal", length, kv_len=1024) for length in (1, 16, 64)),
)


def check_heads(call: Any) -> None:
    """The rules of q, k and v that paged_attention shares."""
    num_heads, num_kv, head_dim = (call.value(axis) for axis in ("num_heads", "num_key_value_heads", "head_dim"))
    call.require(num_kv != 0, "k", "of at least 1 head", 0)
    call.require(head_dim != 0, "q", "of head_dim at least 1", 0)
    if UNKNOWN not in (num_heads, num_kv):
        rule = f"of num_heads a multiple of {num_kv}"
        call.require(num_heads % num_kv == 0, "q", rule, num_heads, f"k has num_key_value_heads = {num_kv}")
    scale = call.value("scale")
    call.require(scale is None or math.isfinite(scale), "scale", "finite, or None for 1 / sqrt(head_dim)", scale)


def remarks(values: Callable[[str], Array | None]) -> tuple[str, ...]:
    mask = values("attn_mask")
    if mask is None or mask.dtype == bool or not np.isin(mask, (0, 1)).all() or not (mask == 1).any():
        return ()
    advice = 'for 1 = attend, 0 = drop pass mask.astype("bool")'
    return (f"attn_mask is {mask.dtype} and holds only 0 and 1, which are added to the scores; {advice}",)


def check(call: Any) -> None:
    check_heads(call)
    if not call.present("startend_row_indices"):
        return
    indices = "startend_row_indices"
    both = call.present("attn_mask")
    call.require(not both, indices, "None with attn_mask", "both", advice="Merge them into one attn_mask")
    columns, allowed = call.value("num_bounds"), (1, 2) if call.value("causal") else (2, 4)
    rule = f"of {allowed[0]} or {allowed[1]} columns when causal is {bool(call.value('causal'))}"
    call.require(columns in (UNKNOWN, *allowed), indices, rule, columns)
    q_len, kv_len = call.value("q_len"), call.value("kv_len")
    if UNKNOWN not in (q_len, kv_len):
        rule = "None with q_len != kv_len"
        call.require(q_len == kv_len, indices, rule, "a tensor", f"q_len {q_len}, kv_len {kv_len}", "Use attn_mask")


spec = OpSpec(
    signature=flash_attention,
    inputs=(
        Input("q", "batch_size q_len num_heads head_dim", FLOATING),
        Input("k", "batch_size kv_len num_key_value_heads head_dim", ("q",)),
        Input("v", "batch_size kv_len num_key_value_heads head_dim", ("q",)),
        Input(
            "attn_mask",
            "batch_size|1 num_heads|1 q_len|1 kv_len",
            ("bool", "q", "float32"),
            optional=True,
            differentiable=False,
            dtype_advice='Pass mask.astype("bool") if it says who attends (True = attend). Cast it to float32 if it is '
            "added to the scores",
            gradient_advice="It is not differentiated: pass attn_mask.detach()",
            shape_advice="Axes that are the same for all have size 1: a padding mask is [batch_size, 1, 1, kv_len]",
        ),
        Input("startend_row_indices", "batch_size num_key_value_heads|1 kv_len num_bounds", ("int32",), True, False),
    ),
    outputs=(
        Output("out", "batch_size q_len num_heads head_dim", "q"),
        Output("lse", "batch_size num_heads q_len", "float32", when="return_lse"),
    ),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=CASES,
    invalid_cases=INVALID_CASES,
    tolerance=Tolerance(
        forward=TwiceComposition("an error of the scores grows with their size: no fixed count of epsilons fits."),
        backward=TwiceComposition("as forward; dp - sum(out d out) cancels, and the composition cancels alike."),
    ),
    cost=cost,
    benchmarks=BENCHMARKS,
    amp="low",
    source="Dao 2023, arXiv:2307.08691; Wang et al. 2024, arXiv:2410.01359",
    check=check,
    remarks=remarks,
)
