"""Each op's share of a decoding step on the host: `python -m examples.llama2_13b.bench.step_ops`.

A fused op saves at most what it takes in: norm + product the norm, product + rotary the rotation, gate-up + swiglu the
activation. So an op's share of the step bounds what fusing it away can give. Each time is the least of all rounds, and
a share is of the sum of these. Beside them stands the least time of Paddle's predictor, which predict uses, and that of
the ops called one by one, as a program after passes would run. The weights are random.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    import sys

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

import paddle

from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.decode_step import DecodeStep, narrow_matrices
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.model.llama import DTYPES, Llama
from fusionkit import passes
from fusionkit.passes import reading, running

# SmolLM2-135M's sizes, untied.
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SAVED = {  # what a fused op would take in
    "norm + product": ("fk.fusion_rms_norm", "fk.fusion_add_rms_norm"),
    "product + rotary + cache": ("fk.fusion_rope",),
    "gate-up + swiglu": ("split_with_num", "fk.swiglu"),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.llama2_13b.bench.step_ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, value in {**SIZES, "cached": 128, "rounds": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="default: 1 16")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="default: %(default)s")
    return parser.parse_args(argv)


def export(config: LlamaConfig, dtype: str, folder: str) -> Path:
    model = Llama(config, dtype)
    narrow_matrices(model)
    step = DecodeStep(model)
    passes.export(step, Path(folder) / "model", step.input_spec())
    return Path(folder) / "model"


def inputs(config: LlamaConfig, dtype: str, rows: int, cached: int, names: list[str]) -> list[Any]:
    """Of a step in which every row brings one token after `cached` ones."""
    blocks = cached // 64 + 1
    cache = KeyValueCache(config, dtype, rows * blocks, 64)
    parts = [Part([5], cached, list(range(row * blocks, (row + 1) * blocks))) for row in range(rows)]
    tensors = {name: paddle.to_tensor(array) for name, array in vars(collate(parts)).items()}
    tensors |= {f"key_cache_{layer}": keys for layer, keys in enumerate(cache.keys)}
    tensors |= {f"value_cache_{layer}": values for layer, values in enumerate(cache.values)}
    return [tensors[name] for name in names]


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(path: Path, config: LlamaConfig, options: argparse.Namespace, rows: int) -> None:
    predictor, (program, tensors) = passes.create_predictor(path), reading.read(path, "cpu")
    singly = running.Running(program, tensors, "cpu", {})
    given = inputs(config, options.dtype, rows, options.cached, singly.input_names)
    best_step = best_singly = float("inf")
    best = [float("inf")] * len(singly.operations)
    for _ in range(options.rounds):
        best_step = min(best_step, seconds(lambda: predictor.run(given)))
        best_singly = min(best_singly, seconds(lambda: singly(given)))
        best = [min(pair) for pair in zip(best, singly.timed(given), strict=True)]
    whole = f"predictor {1e3 * best_step:.2f} ms, op by op {1e3 * best_singly:.2f} ms"
    print(f"\n{options.dtype}, rows {rows}: {whole}, ops {1e3 * sum(best):.2f} ms")
    by_op: defaultdict[str, float] = defaultdict(float)
    for name, least in zip(singly.operations, best, strict=True):
        by_op[name] += least
    for name, total in sorted(by_op.items(), key=lambda item: -item[1])[:10]:
        print(f"  {name:<26} {1e3 * total:8.3f} ms {100 * total / sum(best):5.1f}%")
    for what, names in SAVED.items():
        share = sum(by_op[name] for name in names) / sum(best)
        print(f"  at most, {what:<26} {100 * share:5.1f}%")


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    sizes = {name: getattr(options, name) for name in SIZES}
    config = LlamaConfig(**sizes, max_position_embeddings=options.cached + 64, rms_norm_eps=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        path = export(config, options.dtype, folder)
        for rows in options.rows:
            measure(path, config, options, rows)


if __name__ == "__main__":
    main()
