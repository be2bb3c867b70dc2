"""How much of the gradients' sums the backward pass hides: `python -m examples.llama2_13b.bench.data_parallel`.

Two processes, each with a core and a network namespace of its own, have a copy of a model each; what each sends is held
to a rate. Four things take turns, and each counts with its slowest process:

    Tg   forward and backward alone
    Tc   the sums of the gradients alone
    Ts   forward and backward, then the sums
    Tf   the sums while the backward pass computes

    H = 1 - (Tf - Tg) / Tc is the share of the sums' time that a step does not see; see docs/mc2.md.

The gradients of all ways are compared bit by bit. Needs root; without it the link has no shape, and nothing is claimed.

docs/training.md has the command for 13B's widths, with its memory and its time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

import numpy as np
from fusionkit_bench.mc2.statistics import communication_ratio, estimate, hidden
from fusionkit_bench.mc2.suite import machine

from examples.llama2_13b.bench.data_parallel_rank import AFTER, COMPUTE, DURING, SUMS, WAYS
from examples.llama2_13b.bench.tensor_parallel import RANKS, few, run
from examples.llama2_13b.model.llama import GRANULARITIES

MODULE = "examples.llama2_13b.bench.data_parallel_rank"
RATIOS = (0.3, 0.9)  # of Tc to Tg: less is too easy to hide, more cannot be hidden
# A heap that keeps what is freed took half more than the tensors in it (hidden_size 2560, 2048 tokens). So freed blocks
# return to the system, and new ones are huge pages, which fault less.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
APART = 0.03  # of Ts from Tg + Tc, else the link or the cores had other work


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.llama2_13b.bench.data_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "num_attention_heads": 16}
    for name, value in {**sizes, "vocab_size": 512, "seq_len": 12288}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="of arithmetic (default: %(default)s)")
    again = "what the backward pass computes again, as --recompute_granularity in training (default: nothing)"
    parser.add_argument("--recompute", choices=GRANULARITIES, help=again)
    parser.add_argument("--link", default="200mbit", help="each process's egress (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of all four (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before timing (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    return parser.parse_args(argv)


def require_same_gradients(found: Sequence[dict[str, Any]]) -> None:
    """All ways to sum give all ranks the same bits, in every round.

    Raises:
        SystemExit: they do not.
    """
    sums = {checksum for rank in found for way in (SUMS, AFTER, DURING) for checksum in rank[way]["gradients"]}
    if len(sums) != 1:
        raise SystemExit(f"benchmark: all ways and ranks must have the same gradients, got {len(sums)} different ones")
    if any(rank[COMPUTE]["gradients"][0] in sums for rank in found):
        raise SystemExit("benchmark: a rank's own gradients must differ from their sum")


def report(options: argparse.Namespace, found: Sequence[dict[str, Any]], reasons: list[str]) -> str:
    require_same_gradients(found)
    seconds = {way: np.max([rank[way]["seconds"] for rank in found], axis=0) for way in WAYS}
    ratio = estimate(communication_ratio(seconds[COMPUTE], seconds[SUMS]))
    apart = estimate(seconds[AFTER] / (seconds[COMPUTE] + seconds[SUMS])[: len(seconds[AFTER])] - 1)
    share = estimate(hidden(seconds[COMPUTE], seconds[SUMS], seconds[DURING]))
    widths = f"hidden_size {options.hidden_size}, {options.num_hidden_layers} layers, {options.seq_len} tokens"
    widths += f", recomputing {options.recompute}" if options.recompute else ""
    link = "link not shaped" if reasons else options.link
    reasons = [*reasons, *few(options), *objections(ratio.median, apart.median)]
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in machine().items()),
            f"{RANKS} copies, one thread each, {link}; {widths}, {options.dtype}, {options.rounds} rounds",
            *(f"{way:<8} {estimate(seconds[way])} s" for way in WAYS),
            f"c = Tc / Tg {ratio}; Ts is {100 * apart.median:+.1f}% off Tg + Tc; gradients equal bit by bit",
            f"no claim: {'; '.join(reasons)}" if reasons else f"hidden: H = {share.percent()}",
        ]
    )


def objections(ratio: float, apart: float) -> list[str]:
    low, high = RATIOS
    found = [] if low <= ratio <= high else [f"c must be in {low} to {high}, got {ratio:.2f}; change --seq_len"]
    return found + ([] if abs(apart) <= APART else [f"Ts must be Tg + Tc to {APART:.0%}, got {apart:+.1%}"])


if __name__ == "__main__":
    options = arguments()
    os.environ.update(HUGE_PAGES)  # the processes of the copies read it as they start
    run(options, report, MODULE)
