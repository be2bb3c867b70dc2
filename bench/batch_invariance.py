"""What `fk.use_batch_invariant` costs: the same calls inside and outside, in turn.

    python -m fusionkit_bench.batch_invariance [--dtype float32] [--rounds 15]
    OMP_NUM_THREADS=1 python -m fusionkit_bench.batch_invariance --processor_time    # on a busy machine

The sizes are those of SmolLM2-135M. Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16
import numpy as np
from fusionkit_bench import processor

import fusionkit as fk
from fusionkit.spec import Array

Call = Callable[[], object]
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 16
LAYERS = {"qkv": (576, 960), "o": (576, 576), "gate and up": (576, 3072), "down": (1536, 576), "head": (576, 49152)}
ROWS = (1, 4, 16, 64, 512)
MOST_ROWS_OF_THE_HEAD = 64
COPIES = 4  # of a layer's weight, so that one call does not leave the next one its cache
CONTEXTS = (128, 512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processor_time", action="store_true", help="instead of the time that passed")
    flags = parser.parse_args()
    clock = time.process_time if flags.processor_time else time.perf_counter
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32).astype(np.dtype(flags.dtype))

    print(f"{processor.name()}, {flags.dtype}, microseconds a call outside and inside, median of {flags.rounds} rounds")
    for name, call in calls(random):
        outside, inside = interleaved(call, flags.rounds, clock)
        print(f"{name:<44} {outside:10.0f} {inside:10.0f} {inside / outside:6.2f}", flush=True)


def calls(random: Callable[..., Array]) -> Iterator[tuple[str, Call]]:
    for name, (in_features, out_features) in LAYERS.items():
        weights = [random(in_features, out_features) for _ in range(1 if name == "head" else COPIES)]
        with fk.use_batch_invariant():
            packs = [fk.pack_weight(weight) for weight in weights]
        for rows in ROWS:
            if name == "head" and rows > MOST_ROWS_OF_THE_HEAD:
                continue
            x = random(rows, in_features)
            yield f"{name}, {rows} rows", products(x, weights)
            yield f"{name}, {rows} rows, packed", products(x, packs)
    for context in CONTEXTS:
        for rows in (1, 16):
            yield f"attention, {rows} rows decode at {context}", attention(random, [0] * rows, [context] * rows)
        yield f"attention, prefill of {context}", attention(random, [context], [0])


def products(x: Array, weights: list[Any]) -> Call:
    def call() -> None:
        for weight in weights:
            fk.fused_linear(x, weight)

    return call


def attention(random: Callable[..., Array], encoder: list[int], decoder: list[int]) -> Call:
    counts = [prompt or 1 for prompt in encoder]
    tokens, per_row = sum(counts), max(map(sum, zip(counts, decoder, strict=True))) // BLOCK + 1
    cache = (len(counts) * per_row, KV_HEADS, BLOCK, HEAD_DIM)
    arrays = [random(tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)] + [random(*cache) for _ in "kv"]
    lengths = {
        "block_tables": np.arange(cache[0], dtype=np.int32).reshape(len(counts), per_row),
        "seq_lens_encoder": np.array(encoder, np.int32),
        "seq_lens_decoder": np.array(decoder, np.int32),
        "seq_lens_this_time": np.array(counts, np.int32),
    }
    return lambda: fk.paged_attention(*arrays, **lengths)


def interleaved(call: Call, rounds: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Median microseconds outside and inside."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for inside, seen in zip((False, True), times, strict=True):
            with fk.use_batch_invariant(inside):
                begin = clock()
                call()
                seen.append((clock() - begin) * 1e6)
    first, second = (statistics.median(seen[1:]) for seen in times)  # the first round warms up
    return first, second


if __name__ == "__main__":
    main()
