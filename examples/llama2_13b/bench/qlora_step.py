"""A step of QLoRA at 13B's widths: `python -m examples.llama2_13b.bench.qlora_step --json PATH`.

Slices of a few layers run, each in a process of its own, with codes drawn at random. A step's time and memory grow by
the same amount with every layer, so two slices give those of the whole model: extrapolated, not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

import numpy as np

from examples.llama2_13b.bench.load_memory import resident
from examples.llama2_13b.bench.phases import Phases, tokens, weight
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.config import LlamaConfig
from fusionkit.quantized_weight import QuantizedWeight, num_groups

CONFIG = Path(__file__).parents[1] / "configs" / "llama2_13b.json"
MODULE = "examples.llama2_13b.bench.qlora_step"
ADAPTER, LEARNING_RATE = AdapterConfig(rank=32, alpha=64), 1e-4
COLUMNS = {"seconds": 1.0, "resident": 1e-9, "peak": 1e-9, "predicted": 1e-9}  # what is shown, and its unit


def random_codes(shape: tuple[int, int], dtype: str, group_size: int, scale: float) -> QuantizedWeight:
    """Uniform codes with a minimum, of standard deviation `scale`."""
    count = 256 if dtype == "int8" else 16
    codes = np.random.default_rng(0).integers(0, count, shape, np.uint8)
    step = np.float32(np.float16(scale * 12**0.5 / count))
    scales = np.full((num_groups(shape[0], group_size), shape[1]), step)
    return QuantizedWeight(codes, scales, scales * np.float32(-count / 2), dtype, group_size)


def slice_of(num_layers: int, options: argparse.Namespace) -> Any:
    """A model of so many layers with a new adapter."""
    import paddle

    import fusionkit as fk
    from examples.llama2_13b.model import packed_base
    from examples.llama2_13b.model.lora import LoraLlama

    config = replace(LlamaConfig.from_json(options.config), num_hidden_layers=num_layers)
    with paddle.LazyGuard():
        model = LoraLlama(config, "bfloat16", "full" if options.recompute else None)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    scale = config.initializer_range
    packed_base.fill(
        model,
        lambda name: [fk.pack_weight(random_codes(shapes[name], options.weight_dtype, options.group_size, scale))],
        lambda name: weight(name, shapes[name], scale),
    )
    model.begin_adapter("", ADAPTER, seed=0)
    return model


def run(num_layers: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest step, and bytes: resident before the first, at most in a step, and as predicted."""
    import paddle

    from examples.llama2_13b.parallel.mesh import Mesh
    from examples.llama2_13b.train import memory
    from examples.llama2_13b.train.optimizer import AdamW

    model = slice_of(num_layers, options)
    optimizer = AdamW(model, Mesh(), 0.9, 0.95, 1e-8, weight_decay=0.0, max_grad_norm=0.0)
    input_ids, labels = map(paddle.to_tensor, tokens(model.config, options.tokens))
    phases = Phases(
        lambda: model.loss(input_ids, labels)[0] / options.tokens,
        lambda loss: loss.backward(),
        lambda: optimizer.step(LEARNING_RATE),
    )
    (predicted,) = memory.predict(model, Mesh(), memory.Step(1, options.tokens, 1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = resident("VmRSS"), time.perf_counter()
    steps = [phases.step() for _ in range(options.steps)]
    print(f"{num_layers} layers: {time.perf_counter() - started:.1f} s, losses {[step.loss for step in steps]}",
          file=sys.stderr)  # fmt: skip
    return {
        "seconds": min(step.seconds for step in steps),
        "resident": before,
        "peak": resident("VmHWM"),
        "predicted": predicted.peak,
    }


def extrapolated(measured: dict[int, dict[str, float]], num_layers: int) -> dict[str, float]:
    """By the line through the smallest and the largest slice."""
    few, many = min(measured), max(measured)
    per_layer = {name: (measured[many][name] - measured[few][name]) / (many - few) for name in COLUMNS}
    return {name: measured[few][name] + (num_layers - few) * each for name, each in per_layer.items()}


def in_own_process(num_layers: int, argv: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", MODULE, *argv, "--only", str(num_layers)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=MODULE, description="A step of QLoRA at 13B's widths.")
    made.add_argument("--config", type=Path, default=CONFIG, help="config.json of the whole model")
    made.add_argument("--layers", type=int, nargs=2, default=[2, 4], help="of the two slices")
    made.add_argument("--tokens", type=int, default=256, help="of the step's row")
    made.add_argument("--steps", type=int, default=3, help="of a slice; the fastest counts")
    made.add_argument("--weight_dtype", choices=("int8", "int4"), default="int4", help="of the base")
    made.add_argument("--group_size", type=int, default=32, help="weights of a column that share a scale")
    made.add_argument("--recompute", action="store_true", help="compute layers again for the gradient")
    made.add_argument("--json", type=Path, help="where the figures go")
    made.add_argument("--only", type=int, help=argparse.SUPPRESS)
    return made


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.only is not None:
        from fusionkit import keep_freed_memory

        keep_freed_memory()
        print(json.dumps(run(options.only, options)))
        return 0
    measured = {count: in_own_process(count, argv) for count in options.layers}
    whole = LlamaConfig.from_json(options.config).num_hidden_layers
    rows = {f"{count} layers": row for count, row in measured.items()}
    rows[f"{whole} layers, extrapolated"] = extrapolated(measured, whole)
    print("| | s a step | GB before it | GB at most | GB predicted |\n| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print("|", " | ".join([name, *(f"{row[each] * unit:.3g}" for each, unit in COLUMNS.items())]), "|")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"tokens": options.tokens, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
