"""paged_attention: the spec."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusionkit.dtypes import FLOATING
from fusionkit.errors import argument_error
from fusionkit.ops import flash_attention
from fusionkit.spec import (
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


def paged_attention(
    q: Any,
    k: Any,
    v: Any,
    key_cache: Any,
    value_cache: Any,
    *,
    block_tables: Any,
    seq_lens_encoder: Any,
    seq_lens_decoder: Any,
    seq_lens_this_time: Any,
    scale: float | None = None,
    window: int = 0,
    key_scales: Any = None,
    value_scales: Any = None,
) -> Any:
    """Causal attention of this step's tokens over a key-value cache held in blocks. Inference only.

        cache[position] = k, v;  out = softmax(scale * q K^T) V  over positions 0..the token's own

    With a window these are the token's own position and the window - 1 before it.

    Rows in prefill and rows in decode are served by one call. Position p of row b lies in block
    block_tables[b, p // block_size] at p % block_size.

    A cache of int8 holds codes. A token's key or value in one head is its codes times its scale:

        scale = max(max|k| / 127, 2^-126);  codes = round(k / scale), to nearest even

    both rounded to float32 after each step. They are written once and read by this step too, so attention sees the same
    numbers now and later.

    Args:
        q: [num_tokens, num_heads, head_dim], this step's tokens, row after row, without padding; float32 / bfloat16 /
            float16.
        k: [num_tokens, num_key_value_heads, head_dim], dtype of q.
        v: as k.
        key_cache: [num_blocks, num_key_value_heads, block_size, head_dim], dtype of q, or int8 with scales; updated in
            place. Slots without a token are never read. block_size = the longest sequence gives the plain cache.
        value_cache: as key_cache, and another tensor.
        block_tables: [batch_size, max_blocks] int32. Entries beyond a row's length are not read (-1 by custom), nor
            those of blocks that lie before the window of all of the row's tokens.
        seq_lens_encoder: [batch_size] int32. Above 0: the row is in prefill, its tokens are at positions 0, 1, ...
        seq_lens_decoder: [batch_size] int32: tokens in the cache before this step. A row that is not in prefill puts
            its tokens there: one in plain decoding, more in speculative.
        seq_lens_this_time: [batch_size] int32: the row's tokens in q, seq_lens_encoder in prefill; 0 leaves it out.
        scale: factor of the scores; default 1 / sqrt(head_dim).
        window: positions that a token attends to at most; 0: all up to its own. Keys and values before the window of
            all of a row's tokens are not read.
        key_scales: [num_blocks, num_key_value_heads, block_size] float32, with a key_cache of int8 and only then;
            updated in place. NaN for a key that is not finite; its codes are 0.
        value_scales: as key_scales, of value_cache, and another tensor.

    Returns:
        [num_tokens, num_heads, head_dim], dtype of q. Softmax and sums in float32; one rounding, at the output.

    Raises:
        ValueError: a shape or dtype does not fit. int8 comes without scales, or another dtype with them.
            seq_lens_this_time does not sum to num_tokens, or splits a prefill. A row does not fit into its blocks. A
            block does not exist.

    Source: Kwon et al. 2023, arXiv:2309.06180; the three lengths as in Paddle's block_multihead_attention; the window:
    Jiang et al. 2023, arXiv:2310.06825, section 2.
    """


SMALLEST_SCALE = 2.0**-126  # float32's smallest normal number: what divides must not be 0


def quantized(tokens: Array) -> tuple[Array, Array]:
    """(codes, scales) of keys or values [..., head_dim], in float32 step by step: every backend has the same bits."""
    exact_tokens = tokens.astype(np.float32)
    largest = np.abs(exact_tokens).max(axis=-1)
    is_finite = np.isfinite(largest)
    scales = np.maximum(largest / np.float32(127), np.float32(SMALLEST_SCALE))
    with np.errstate(invalid="ignore"):
        codes = np.rint(exact_tokens / scales[..., None])
    return np.where(is_finite[..., None], codes, 0), np.where(is_finite, scales, np.float32(np.nan))


def first_key(start: int, window: int) -> int:
    """The first position that a token at `start` attends to."""
    return max(0, start + 1 - window) if window else 0


def row_spans(
    num_tokens: int,
    num_blocks: int,
    block_size: int,
    block_tables: Sequence[Sequence[int]],
    encoder: Sequence[int],
    decoder: Sequence[int],
    this_time: Sequence[int],
    *,
    window: int = 0,
) -> list[tuple[int, int, int, list[int]]]:
    """(first token, first position, tokens, blocks) of each row that takes part; raises for values that do not fit."""
    spans = []
    token = 0
    for row, count in enumerate(this_time):
        start = 0 if encoder[row] > 0 else decoder[row]
        require(count >= 0, "seq_lens_this_time", "at least 0", count, f"row {row}")
        if count == 0:
            continue
        whole = encoder[row] <= 0 or count == encoder[row]
        require(whole, "seq_lens_this_time", "seq_lens_encoder in prefill", count, f"row {row} has {encoder[row]}")
        require(encoder[row] >= 0, "seq_lens_encoder", "at least 0", encoder[row], f"row {row}")
        require(start >= 0, "seq_lens_decoder", "at least 0", start, f"row {row}")
        needed = -(-(start + count) // block_size)
        blocks = list(block_tables[row][:needed])
        read = blocks[first_key(start, window) // block_size :]
        exist = len(blocks) == needed and all(0 <= block < num_blocks for block in read)
        rule = f"{needed} blocks in [0, {num_blocks}) for the {start + count} tokens of row {row}"
        require(exist, "block_tables", rule, blocks, f"block_size is {block_size}")
        spans.append((token, start, count, blocks))
        token += count
    require(token == num_tokens, "seq_lens_this_time", f"of sum {num_tokens}, the tokens of q", list(this_time))
    return spans


def require(condition: bool, argument: str, rule: str, got: object, context: str = "") -> None:
    if not condition:
        raise argument_error("paged_attention", argument, rule, got, context)


def reference(
    q: Array,
    k: Array,
    v: Array,
    key_cache: Array,
    value_cache: Array,
    *,
    block_tables: Array,
    seq_lens_encoder: Array,
    seq_lens_decoder: Array,
    seq_lens_this_time: Array,
    scale: float | None = None,
    window: int = 0,
    key_scales: Array | None = None,
    value_scales: Array | None = None,
    rounding: Rounding = exact,
) -> Array:
    """Writes the caches and their scales, as the op does."""
    caches = (key_cache, key_scales), (value_cache, value_scales)
    num_blocks, _, block_size, _ = key_cache.shape
    lengths = (lens.tolist() for lens in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time))
    spans = row_spans(len(q), num_blocks, block_size, block_tables.tolist(), *lengths, window=window)
    for token, start, count, blocks in spans:
        positions = np.arange(start, start + count)
        slots = np.array(blocks)[positions // block_size], slice(None), positions % block_size
        for tokens, (cache, scales) in zip((k, v), caches, strict=True):
            new = tokens[token : token + count]
            if scales is None:
                cache[slots] = new
            else:
                cache[slots], scales[slots] = quantized(new)
    out = np.zeros(q.shape)
    for token, start, count, blocks in spans:
        queries = q[None, token : token + count]
        positions = np.arange(first_key(start, window), start + count)
        slots = np.array(blocks)[positions // block_size], slice(None), positions % block_size
        keys, values = (
            cache[slots][None] if scales is None else rounding(cache[slots] * scales[slots][..., None])[None]
            for cache, scales in caches
        )
        mask = within(window, start, count, positions)
        out[token : token + count] = flash_attention.reference(
            queries, keys, values, causal=True, attn_mask=mask, scale=scale, rounding=rounding
        )[0]
    return out


def within(window: int, start: int, count: int, positions: Array) -> Array | None:
    """[1, 1, count, keys], True where a key is in the window of a token; None without a window."""
    if not window:
        return None
    return np.asarray(positions > np.arange(start, start + count)[:, None] - window)[None, None]


def case(
    name: str,
    encoder: Sequence[int],
    decoder: Sequence[int],
    this_time: Sequence[int] | None = None,
    *,
    num_heads: int = 2,
    num_key_value_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 4,
    unused: float = 6e4,
    int8: bool = False,
    llama: bool = False,
    **kwargs: Any,
) -> Case:
    """A step in which each row has its own blocks, in shuffled order; slots without a token hold `unused`.

    In int8 their scales do, and each token of a head has a magnitude of its own.
    """
    starts = [0 if e > 0 else d for e, d in zip(encoder, decoder, strict=True)]
    counts = [e if e > 0 else 1 for e in encoder] if this_time is None else list(this_time)
    needed = [-(-(start + count) // block_size) for start, count in zip(starts, counts, strict=True)]

    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        num_blocks = sum(needed) + 2
        cache_shape = (num_blocks, num_key_value_heads, block_size, head_dim)
        caches = [np.full(cache_shape, 99, np.int8) if int8 else np.full(cache_shape, unused) for _ in "kv"]
        scales = {f"{name}_scales": np.full(cache_shape[:3], unused) for name in ("key", "value") if int8}
        free = rng.permutation(num_blocks)
        tables = np.full((len(needed), max(needed, default=0)), -1, dtype=np.int32)
        for row, (count, start) in enumerate(zip(needed, starts, strict=True)):
            tables[row, :count], free = free[:count], free[count:]
            old = np.arange(start)
            slots = tables[row, old // block_size], slice(None), old % block_size
            for cache, of_cache in itertools.zip_longest(caches, scales.values()):
                cached = rng.standard_normal((start, num_key_value_heads, head_dim))
                if of_cache is None:
                    cache[slots] = cached
                else:
                    cache[slots], of_cache[slots] = quantized(cached * magnitudes(rng, cached))
        tokens = sum(counts)
        new = {name: rng.standard_normal((tokens, num_key_value_heads, head_dim)) for name in "kv"}
        return {
            "q": rng.standard_normal((tokens, num_heads, head_dim)),
            **({name: each * magnitudes(rng, each) for name, each in new.items()} if int8 else new),
            "key_cache": caches[0],
            "value_cache": caches[1],
            "block_tables": tables,
            "seq_lens_encoder": np.array(encoder, dtype=np.int32),
            "seq_lens_decoder": np.array(decoder, dtype=np.int32),
            "seq_lens_this_time": np.array(counts, dtype=np.int32),
            **scales,
            **kwargs,
        }

    return Case(name, arguments, llama)


def magnitudes(rng: np.random.Generator, tokens: Array) -> Array:
    """A factor for each token of a head: a scale of another one is then far off."""
    return rng.uniform(0.25, 4, (*tokens.shape[:-1], 1))


LLAMA: dict[str, Any] = dict(num_heads=40, num_key_value_heads=40, head_dim=128, block_size=64, llama=True)  # 2 13B

CASES = (
    case("prefill", [17, 5, 33], [0, 0, 0]),
    case("decode", [0, 0, 0], [16, 1, 37]),
    case("mixed", [7, 0, 18, 0], [0, 31, 0, 3]),
    case("prefill-1-token", [1, 1], [0, 0]),
    case("rows-left-out", [0, 0, 9, 0], [12, 0, 0, 20], [1, 0, 9, 0]),
    case("prefill-row-left-out", [9, 6], [0, 0], [0, 6]),
    case("decode-3-tokens", [0, 0], [6, 15], [3, 3]),
    case("GQA-4:2", [6, 0], [0, 13], num_heads=4),
    case("MQA-5:1", [6, 0], [0, 13], num_heads=5, num_key_value_heads=1),
    *(case(f"8-queries-D{dim}", [0, 0], [6, 15], num_heads=8, num_key_value_heads=1, head_dim=dim) for dim in (8, 80)),
    case("block-1", [7, 0], [0, 12], block_size=1),
    case("block-64", [65, 0, 0], [0, 63, 64], block_size=64),
    case("plain-cache", [21, 0], [0, 40], block_size=48),
    *(case(f"D{dim}", [5, 0], [0, 18], head_dim=dim) for dim in (1, 15, 17, 33, 64, 128)),
    case("scale-0.5", [5, 0], [0, 9], scale=0.5),
    *(case(f"window-{size}", [21, 0, 0, 3], [0, 40, 2, 0], window=size) for size in (1, 4, 17, 64)),
    case("window-8-tokens-5", [0, 0], [30, 3], [5, 5], num_heads=4, window=8),
    case("window-9-chunk-of-40", [0, 0, 0], [30, 0, 3], [40, 40, 1], window=9),
    case("window-100-blocks-64", [300, 0, 0], [0, 700, 99], [300, 70, 1], block_size=64, window=100),
    case("window-5-unused-slots-nan", [9, 0], [0, 22], window=5, unused=float("nan")),
    case("unused-slots-nan", [5, 0], [0, 9], unused=float("nan")),
    case("unused-slots-inf", [21, 0, 0], [0, 40, 62], [21, 1, 3], block_size=64, num_heads=8, unused=float("inf")),
    case("int8-prefill", [17, 5, 33], [0, 0, 0], int8=True),
    case("int8-decode", [0, 0, 0], [16, 1, 37], int8=True),
    case("int8-mixed", [7, 0, 18, 0], [0, 31, 0, 3], int8=True),
    case("int8-decode-3-tokens", [0, 0], [6, 15], [3, 3], int8=True),
    case("int8-GQA-4:2", [6, 0], [0, 13], num_heads=4, int8=True),
    case("int8-8-queries-D80", [0, 0], [6, 15], num_heads=8, num_key_value_heads=1, head_dim=80, int8=True),
    *(case(f"int8-D{dim}", [5, 0], [0, 18], head_dim=dim, int8=True) for dim in (1, 15, 17, 33, 64, 128)),
    case("int8-block-1", [7, 0], [0, 12], block_size=1, int8=True),
    case("int8-plain-cache", [21, 0], [0, 300], block_size=320, int8=True),
    case("int8-window-9-chunk-of-40", [0, 0, 0], [30, 0, 3], [40, 40, 1], window=9, int8=True),
    case("int8-window-100", [300, 0, 0], [0, 700, 99], [300, 70, 1], block_size=64, window=100, int8=True),
    case("int8-unused-slots-nan", [5, 0], [0, 9], unused=float("nan"), int8=True),
    case("nothing-to-do", [0, 0], [4, 6], [0, 0]),
    case("no-rows", [], []),
    case("B8xS1024xH40xD128-decode", [0] * 8, [1023] * 8, **LLAMA),
    case("int8-B8xS1024xH40xD128-decode", [0] * 8, [1023] * 8, int8=True, **LLAMA),
    case("B1xS512xH40xD128-prefill", [512], [0], **LLAMA),
)


def int32(*values: int) -> Array:
    return np.array(values, dtype=np.int32)


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    """Changes to a valid call: a prefill of 3 tokens and a decode step at position 4, in blocks of 4."""
    valid: dict[str, Array] = {
        "q": np.ones((4, 4, 8)),
        "k": np.ones((4, 2, 8)),
        "v": np.ones((4, 2, 8)),
        "key_cache": np.ones((3, 2, 4, 8)),
        "value_cache": np.ones((3, 2, 4, 8)),
        "block_tables": np.array([[2, -1], [0, 1]], dtype=np.int32),
        "seq_lens_encoder": int32(3, 0),
        "seq_lens_decoder": int32(0, 4),
        "seq_lens_this_time": int32(3, 1),
    }
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


CODES: dict[str, Any] = {name: np.ones((3, 2, 4, 8), np.int8) for name in ("key_cache", "value_cache")}
SCALES: dict[str, Any] = {name: np.ones((3, 2, 4), np.float32) for name in ("key_scales", "value_scales")}

INVALID_CASES = (
    invalid("q-rank", r"q must be \[num_tokens, num_heads, head_dim\]", q=np.ones((1, 4, 4, 8))),
    invalid("k-tokens", "k must be .* with num_tokens = 4", k=np.ones((3, 2, 8))),
    invalid("heads", "q must be of num_heads a multiple of 2", q=np.ones((4, 3, 8))),
    invalid("cache-head-dim", "key_cache must be .* with head_dim = 8", key_cache=np.ones((3, 2, 4, 7))),
    invalid("cache-heads", "key_cache must be .* with num_key_value_heads = 2", key_cache=np.ones((3, 4, 4, 8))),
    invalid("cache-blocks", "value_cache must be .* with num_blocks = 3", value_cache=np.ones((4, 2, 4, 8))),
    invalid("cache-none", "key_cache must be a tensor", TypeError, key_cache=None),
    invalid(
        "block-size-0",
        "key_cache must be of block_size at least 1",
        key_cache=np.ones((3, 2, 0, 8)),
        value_cache=np.ones((3, 2, 0, 8)),
    ),
    invalid("table-rank", r"block_tables must be \[batch_size, max_blocks\]", block_tables=int32(0, 1)),
    invalid("table-dtype", "block_tables must be of dtype int32", block_tables=np.zeros((2, 2))),
    invalid("lengths-batch", "seq_lens_decoder must be .* with batch_size = 2", seq_lens_decoder=int32(0, 4, 1)),
    invalid("lengths-dtype", "seq_lens_encoder must be of dtype int32", seq_lens_encoder=np.array([3, 0])),
    invalid("tokens-sum", "seq_lens_this_time must be", seq_lens_this_time=int32(3, 2)),
    invalid("tokens-of-a-split-prefill", "seq_lens_this_time must be", seq_lens_this_time=int32(2, 2)),
    invalid("tokens-negative", "seq_lens_this_time must be", seq_lens_this_time=int32(5, -1)),
    invalid("decoder-negative", "seq_lens_decoder must be", seq_lens_decoder=int32(0, -1)),
    invalid("block-beyond", "block_tables must be", block_tables=np.array([[2, -1], [0, 3]], dtype=np.int32)),
    invalid("block-missing", "block_tables must be", block_tables=np.array([[2, -1], [0, -1]], dtype=np.int32)),
    invalid("table-short", "block_tables must be", seq_lens_decoder=int32(0, 8)),
    invalid("scale-inf", "scale must be finite", scale=math.inf),
    invalid("int8-without-scales", "key_scales must be a tensor with a key_cache of int8", **CODES),
    invalid(
        "int8-without-value-scales",
        "value_scales must be a tensor with a value_cache of int8",
        **CODES,
        key_scales=SCALES["key_scales"],
    ),
    invalid("scales-of-floats", "key_scales must be None with a key_cache of float", **SCALES),
    invalid("one-cache-int8", "value_cache must be of dtype int8", key_cache=CODES["key_cache"], **SCALES),
    invalid(
        "scales-blocks",
        "value_scales must be .* with num_blocks = 3",
        **CODES,
        key_scales=SCALES["key_scales"],
        value_scales=np.ones((4, 2, 4), np.float32),
    ),
    invalid(
        "scales-dtype",
        "key_scales must be of dtype float32",
        **CODES,
        key_scales=np.ones((3, 2, 4), np.int32),
        value_scales=SCALES["value_scales"],
    ),
    invalid("window-negative", "window must be at least 0", window=-1),
    invalid("window-2.0", "window must be an int", TypeError, window=2.0),
)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """As flash_attention, for rows of equal length whose blocks are full after the step; the timed cases are such.

    The cache is read once, as far as a window reaches, and the step's tokens are written to it. `cache_itemsize` is the
    bytes of an element there, with its share of a scale.
    """
    batch_size, num_tokens, head_dim = dims["batch_size"], dims["num_tokens"], dims["head_dim"]
    kv_len = dims["max_blocks"] * dims["block_size"]
    row_tokens = num_tokens // max(batch_size, 1)
    pairs = batch_size * flash_attention.causal_pairs(row_tokens, kv_len)
    if window := dims.get("window"):
        starts = range(kv_len - row_tokens, kv_len)
        pairs = batch_size * sum(min(window, start + 1) for start in starts)
        kv_len -= first_key(starts.start, window)
    new_keys = 2 * num_tokens * dims["num_key_value_heads"] * head_dim
    old_keys = 2 * batch_size * (kv_len - row_tokens) * dims["num_key_value_heads"] * head_dim
    queries = num_tokens * dims["num_heads"] * head_dim
    cache_itemsize = dims.get("cache_itemsize", itemsize)
    return Cost(
        4.0 * dims["num_heads"] * head_dim * pairs,
        itemsize * (queries + new_keys) + cache_itemsize * old_keys,
        itemsize * queries + cache_itemsize * new_keys,
    )


def check(call: Any) -> None:
    flash_attention.check_heads(call)
    call.require(call.value("block_size") != 0, "key_cache", "of block_size at least 1", 0)
    window = call.value("window")
    call.require(window >= 0, "window", "at least 0, which is for all positions", window)
    for cache, scales in (("key_cache", "key_scales"), ("value_cache", "value_scales")):
        dtype, is_present = call.tensors[cache].dtype, call.present(scales)
        rule = f"{'a tensor' if dtype == 'int8' else 'None'} with a {cache} of {dtype}"
        call.require(is_present == (dtype == "int8"), scales, rule, "a tensor" if is_present else "None")


def timed(batch_size: int, num_key_value_heads: int, int8: bool = False) -> Benchmark:
    """One new token a row, the 4096th."""
    heads = f"H40:{num_key_value_heads}" if num_key_value_heads != 40 else "H40"
    return Benchmark(
        case(
            f"B{batch_size}xS4096x{heads}xD128-decode{'-int8' * int8}",
            [0] * batch_size,
            [4095] * batch_size,
            num_heads=40,
            num_key_value_heads=num_key_value_heads,
            head_dim=128,
            block_size=64,
            int8=int8,
        ),
        ("bfloat16",),
        {"cache_itemsize": 1 + 4 / 128} if int8 else {},
    )


BENCHMARKS = (
    *(timed(batch_size, kv_heads) for batch_size in (1, 8) for kv_heads in (40, 8)),
    *(timed(1, kv_heads, int8=True) for kv_heads in (40, 8)),
)

SLOTS = "num_blocks num_key_value_heads block_size"
CACHE = f"{SLOTS} head_dim"

spec = OpSpec(
    signature=paged_attention,
    inputs=(
        Input("q", "num_tokens num_heads head_dim", FLOATING),
        Input("k", "num_tokens num_key_value_heads head_dim", ("q",)),
        Input("v", "num_tokens num_key_value_heads head_dim", ("q",)),
        Input("key_cache", CACHE, ("q", "int8")),
        Input("value_cache", CACHE, ("key_cache",)),
        Input("block_tables", "batch_size max_blocks", ("int32",), differentiable=False),
        Input("seq_lens_encoder", "batch_size", ("int32",), differentiable=False),
        Input("seq_lens_decoder", "batch_size", ("int32",), differentiable=False),
        Input("seq_lens_this_time", "batch_size", ("int32",), differentiable=False),
        Input("key_scales", SLOTS, ("float32",), optional=True, differentiable=False),
        Input("value_scales", SLOTS, ("float32",), optional=True, differentiable=False),
    ),
    outputs=(Output("out", "num_tokens num_heads head_dim", "q"),),
    reference=reference,
    reference_vjp=None,
    cases=CASES,
    invalid_cases=INVALID_CASES,
    tolerance=Tolerance(forward=TwiceComposition("the arithmetic of flash_attention, and its rule."), backward=None),
    cost=cost,
    benchmarks=BENCHMARKS,
    amp="keep",
    source="Kwon et al. 2023, arXiv:2309.06180",
    check=check,
    mutates=("key_cache", "value_cache", "key_scales", "value_scales"),
)
