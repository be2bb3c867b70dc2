"""Training steps of a Llama slice beside stock Paddle and PyTorch: `python -m examples.llama2_13b.bench.step`.

Every contestant starts from the same weights and tokens, in a process of its own, in turn in every round. Peers run in
a process with nothing tuned, and once more with `fusionkit.keep_freed_memory`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

from fusionkit_bench import processor

from examples.llama2_13b.bench import training_step
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.train import metrics

# Contestants, with whether their process keeps freed memory.
RUNS = {
    "fusionkit": ("fusionkit", True),
    "lora": ("lora", True),
    "eager": ("eager", False),
    "eager, memory kept": ("eager", True),
    "torch autocast": ("torch_autocast", False),
    "torch autocast, memory kept": ("torch_autocast", True),
    "torch bfloat16": ("torch_bfloat16", False),
    "torch bfloat16, memory kept": ("torch_bfloat16", True),
}
TARGETS = {"eager": 5.0, "torch autocast": 1.6, "torch bfloat16": 1.25}  # of fusionkit's tokens/s to theirs

# The first losses agree to bfloat16's rounding of the logits: 0.003 were seen between float32 and bfloat16.
LOSS_BOUND = 0.02


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.llama2_13b.bench.step", description=__doc__)
    sizes = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 2, "num_attention_heads": 40}
    for name, value in {**sizes, "vocab_size": 32000, "seq_len": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="every contestant runs once in each (default: 2)")
    parser.add_argument(
        "--warmup", type=int, default=2, help="steps before timing, while memory still grows (default: 2)"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round (default: 2)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="default: all")
    parser.add_argument("--json", type=Path, help="write every step to this file")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # what a process of its own is asked to do
    return parser.parse_args(argv)


def config_of(options: argparse.Namespace) -> LlamaConfig:
    names = {field.name for field in dataclasses.fields(LlamaConfig)}
    sizes = {name: value for name, value in vars(options).items() if name in names}
    return LlamaConfig(max_position_embeddings=options.seq_len, rms_norm_eps=1e-5, **sizes)


def in_own_process(options: argparse.Namespace, contestant: str) -> Any:
    flags = [f"--{name}={value}" for name, value in vars(options).items() if isinstance(value, int)]
    command = [sys.executable, "-m", "examples.llama2_13b.bench.step", *flags, "--contestant", contestant]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark: {contestant} ended with {done.returncode}; its messages are above")
    return json.loads(done.stdout.splitlines()[-1])


def contest(options: argparse.Namespace) -> None:
    """In a process of its own: run one contestant, or measure the product rate, and print JSON."""
    config = config_of(options)
    if options.contestant == "product":
        print(json.dumps(training_step.product_rate(config, options.seq_len)))
        return
    contestant, keeps_memory = RUNS[options.contestant]
    steps = (options.warmup, options.steps)
    print(json.dumps(training_step.run(contestant, config, options.seq_len, *steps, keeps_memory)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[Any]] = {run: [] for run in options.runs if _installed(run)}
    rates = []
    for number in range(options.rounds):
        rates.append(in_own_process(options, "product"))
        for run, results in runs.items():
            results.append(in_own_process(options, run))
            print(f"round {number + 1} of {options.rounds}: {run}", file=sys.stderr)
    require_same_start(runs)
    return {"machine": machine(), "options": vars(options), "product_rate": rates, "runs": runs}


def _installed(run: str) -> bool:
    return not run.startswith("torch") or importlib.util.find_spec("torch") is not None


def require_same_start(runs: dict[str, list[Any]]) -> None:
    """Raise unless the first losses agree, so that all contestants compute the same model, and each one learns."""
    first = {run: results[0]["losses"][0] for run, results in runs.items()}
    if max(first.values()) - min(first.values()) > LOSS_BOUND:
        raise SystemExit(f"benchmark: the first losses must agree to {LOSS_BOUND}, got {first}")
    for run, results in runs.items():
        losses = results[0]["losses"]
        if losses[-1] >= losses[0]:
            raise SystemExit(f"benchmark: {run} must learn, got the losses {losses}")


def machine() -> dict[str, str]:
    names = [
        name
        for name in ("paddlepaddle", "torch", "numpy")
        if importlib.util.find_spec(name.replace("paddlepaddle", "paddle"))
    ]
    return {
        "processor": processor.name(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "date": datetime.date.today().isoformat(),
    }


def table(measured: dict[str, Any], config: LlamaConfig, seq_len: int) -> str:
    """One line a run: medians over all timed steps, the spread of the total, and what of the product rate is used."""
    rate = statistics.median(measured["product_rate"])
    flops = {run: product_flops(RUNS[run][0], config, seq_len) for run in {"fusionkit": 0, **measured["runs"]}}
    totals = {run: seconds(results) for run, results in measured["runs"].items()}
    ours = statistics.median(totals["fusionkit"]) if "fusionkit" in totals else None
    lines = [
        ", ".join(f"{name} {value}" for name, value in measured["machine"].items()),
        f"products {flops['fusionkit'] / 1e12:.2f} TFLOP a step; packed product {rate / 1e9:.0f} GFLOP/s",
        "| | tokens/s | step s | spread | forward | backward | optimizer | of product rate | peak GB | fusionkit is |",
        "| --- " * 10 + "|",
    ]
    for run, results in measured["runs"].items():
        total = statistics.median(totals[run])
        parts = [statistics.median(s[part] for r in results for s in r["steps"]) for part in PARTS]
        peak = max(result["peak_rss"] for result in results)
        cells = [run, f"{seq_len / total:.1f}", f"{total:.2f}", f"{min(totals[run]):.2f}-{max(totals[run]):.2f}"]
        cells += [*(f"{part:.2f}" for part in parts), f"{flops[run] / total / rate:.0%}", f"{peak / 1e9:.1f}"]
        lines.append("| " + " | ".join([*cells, verdict(run, total, ours)]) + " |")
    return "\n".join(lines)


PARTS = ("forward", "backward", "optimizer")


def seconds(results: list[Any]) -> list[float]:
    return [sum(step[part] for part in PARTS) for result in results for step in result["steps"]]


def verdict(run: str, total: float, ours: float | None) -> str:
    if ours is None or run == "fusionkit":
        return ""
    text = f"{total / ours:.2f}x"
    if run not in TARGETS:
        return text
    return f"{text}, {'reached' if total / ours >= TARGETS[run] else 'short of'} {TARGETS[run]}x"


def product_flops(contestant: str, config: LlamaConfig, seq_len: int) -> float:
    """Of a step's matrix products with weights: 6 for each parameter but the embedding and token, as in metrics.py, and
    4 for a frozen one."""
    table = training_step.table_of(contestant, config)
    return metrics.model_flops(config, table, [seq_len]) - metrics.attention_flops(config, [seq_len])


def main() -> None:
    options = arguments()
    if options.contestant:
        contest(options)
        return
    measured = measure(options)
    if options.json:  # first: a screen that fails costs no measurement
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(measured, indent=2, default=str) + "\n", encoding="utf-8")
    print(table(measured, config_of(options), options.seq_len))


if __name__ == "__main__":
    main()
