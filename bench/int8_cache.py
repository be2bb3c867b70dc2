"""Attention of one new token over a cache of bfloat16 and over one of int8, in turn.

    python -m fusionkit_bench.int8_cache [--contexts 512 2048] [--rounds 20]

Each call reads a cache of its own, and all of them together are beyond the processor's caches: a model comes back to a
layer's cache after reading all weights. Each figure is the least of all calls.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16
import numpy as np
from fusionkit_bench import processor

import fusionkit as fk

HEADS = {"SmolLM2-135M, 9:3 heads of 64": (9, 3, 64), "Llama 2 13B, 40 heads of 128": (40, 40, 128)}
DTYPES = ("bfloat16", "int8")
BLOCK_SIZE = 64
BEYOND_THE_CACHES = 2**28  # bytes that the caches of bfloat16 have together
Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048], help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=20)
    flags = parser.parse_args()
    print(f"{processor.name()}, microseconds a call, the least: bfloat16, int8, their ratio")
    for name, heads in HEADS.items():
        for context in flags.contexts:
            calls = [attention(*heads, context, dtype) for dtype in DTYPES]
            for batch_invariant in (False, True):
                with fk.use_batch_invariant(batch_invariant):
                    floats, codes = interleaved(calls, flags.rounds)
                kind = ", batch invariant" * batch_invariant
                print(
                    f"{f'{name}, {context} tokens{kind}':<64}{floats:9.1f}{codes:9.1f}{floats / codes:7.2f}", flush=True
                )


def attention(heads: int, kv_heads: int, head_dim: int, context: int, dtype: str) -> list[Call]:
    """Calls with caches of their own, as many as are beyond the processor's caches."""
    rng = np.random.default_rng(0)
    shape = (-(-context // BLOCK_SIZE), kv_heads, BLOCK_SIZE, head_dim)
    tokens = [rng.standard_normal((1, n, head_dim), np.float32).astype("bfloat16") for n in (heads, kv_heads, kv_heads)]
    lengths = {
        "block_tables": np.arange(shape[0], dtype=np.int32)[None],
        "seq_lens_encoder": np.zeros(1, np.int32),
        "seq_lens_decoder": np.array([context - 1], np.int32),
        "seq_lens_this_time": np.ones(1, np.int32),
    }
    count = math.ceil(BEYOND_THE_CACHES / (2 * 2 * math.prod(shape)))
    keys, values = (filled(rng, shape, dtype) for _ in "kv")

    def call() -> Call:
        caches = [each.copy() for each in (keys, values)]
        scales = {name: np.full(shape[:3], 0.02, np.float32) for name in ("key_scales", "value_scales")}
        given: dict[str, Any] = {**lengths, **(scales if dtype == "int8" else {})}
        return lambda: fk.paged_attention(*tokens, *caches, **given)

    return [call() for _ in range(count)]


def filled(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "int8":
        return rng.integers(-127, 128, shape, np.int8)
    return rng.standard_normal(shape, np.float32).astype(dtype)


def interleaved(ways: list[list[Call]], rounds: int) -> list[float]:
    """The least microseconds of a call of each way. They take turns call by call."""
    least = [math.inf] * len(ways)
    for turn in list(zip(*ways, strict=True)) * rounds:
        for number, call in enumerate(turn):
            begin = time.perf_counter()
            call()
            least[number] = min(least[number], (time.perf_counter() - begin) * 1e6)
    return least


if __name__ == "__main__":
    main()
