"""Steps of a divided Llama with and without overlap: `python -m examples.llama2_13b.bench.tensor_parallel`.

Two processes, each with a core and a network namespace of its own, divide the layers and the tokens of a model; what
each sends is held to a rate. Two models with the same weights train on the same tokens: the layers of one call the
products fused with collectives (MC2), those of the other the plain collective and then the plain product, over the same
communicator. Their steps take turns, and a step counts with its slowest process. Needs root; without it the link has
no shape, and nothing is claimed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

import numpy as np
from fusionkit_bench.mc2.cores import core_of_each_rank, physical_cores
from fusionkit_bench.mc2.network import Network, address, missing
from fusionkit_bench.mc2.process import RankProcess, answers
from fusionkit_bench.mc2.statistics import estimate
from fusionkit_bench.mc2.suite import machine
from tqdm import tqdm

from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import Screen
from fusionkit.parallel import unique_id

RANKS = 2
MC2, SERIAL = "mc2", "serial"
MODULE = "examples.llama2_13b.bench.tensor_parallel_rank"
# (options, what each rank found, reasons against a claim) -> text
Report = Callable[[argparse.Namespace, Sequence[dict[str, Any]], list[str]], str]
MIN_ROUNDS = 10  # fewer give no claim

# Both sum the same products in the same order of ranks; cutting a product into chunks may change a float32 sum's
# order, which bfloat16 then rounds to a neighbour.
LOSS_BOUND = {"float32": 1e-5, "bfloat16": 2e-3}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.llama2_13b.bench.tensor_parallel", description=__doc__)
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "num_attention_heads": 16}
    for name, value in {**sizes, "vocab_size": 2048, "seq_len": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--dtype", choices=LOSS_BOUND, default="bfloat16", help="of arithmetic (default: %(default)s)")
    parser.add_argument("--link", default="200mbit", help="each process's egress (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="one step of each model (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before timing (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every step to this file")
    return parser.parse_args(argv)


@contextmanager
def ranks(options: argparse.Namespace, shaped: bool, module: str) -> Iterator[list[RankProcess]]:
    """Processes of the module that have met and made their models."""
    processes: list[RankProcess] = []
    network = None
    try:
        for rank, core in enumerate(core_of_each_rank(RANKS, physical_cores())):
            processes.append(RankProcess(rank, RANKS, core, shaped, module))
        if shaped:
            network = Network([process.pid for process in processes], options.link)
        identifier = unique_id()
        for rank, process in enumerate(processes):
            process.ask("join", (address(0), address(rank)) if shaped else identifier)
        answers(processes)
        sizes = {name: value for name, value in vars(options).items() if name not in ("link", "json")}
        ask(processes, "prepare", sizes)
        yield processes
    finally:
        for process in processes:
            process.close()
        if network is not None:
            network.close()


def ask(processes: Sequence[RankProcess], request: str, *arguments: Any) -> list[Any]:
    for process in processes:
        process.ask(request, *arguments)
    return answers(processes)


class Found:
    """What each rank found, {contestant: {"seconds": of each round, ...}}; it grows round by round."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.ranks: list[dict[str, Any]] = [{} for _ in range(RANKS)]

    def add(self, measured: Sequence[dict[str, Any]]) -> None:
        for rank, contestants in zip(self.ranks, measured, strict=True):
            for name, values in contestants.items():
                for key, value in values.items():
                    rank.setdefault(name, {}).setdefault(key, []).append(value)

    def write(self) -> None:
        """To options.json, if it is given; the file of the round before stays whole until the end."""
        if self._options.json:
            self._options.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"options": vars(self._options), "ranks": self.ranks}
            atomic.write_file(self._options.json, (json.dumps(content, default=str, indent=1) + "\n").encode())


def slowest(found: Sequence[dict[str, Any]], run: str) -> list[float]:
    return [max(seconds) for seconds in zip(*(rank[run]["seconds"] for rank in found), strict=True)]


def require_same_losses(found: Sequence[dict[str, Any]], bound: float) -> bool:
    """Whether the losses of both models are equal bit by bit.

    Raises:
        SystemExit: ranks disagree, the models do by more than the bound, or a model does not learn.
    """
    for run in (MC2, SERIAL):
        if any(rank[run]["losses"] != found[0][run]["losses"] for rank in found):
            raise SystemExit(f"benchmark: all ranks must have the same losses, got {[r[run]['losses'] for r in found]}")
    losses = {run: np.array(found[0][run]["losses"]) for run in (MC2, SERIAL)}
    if np.abs(losses[MC2] / losses[SERIAL] - 1).max() > bound:
        raise SystemExit(f"benchmark: the losses must agree to {bound}, got {losses}")
    if len(losses[MC2]) > 1 and losses[MC2][-1] >= losses[MC2][0]:
        raise SystemExit(f"benchmark: the model must learn, got the losses {losses[MC2]}")
    return bool(np.array_equal(losses[MC2], losses[SERIAL]))


def report(options: argparse.Namespace, found: Sequence[dict[str, Any]], reasons: list[str]) -> str:
    same = require_same_losses(found, LOSS_BOUND[options.dtype])
    seconds = {run: slowest(found, run) for run in (MC2, SERIAL)}
    ratio = estimate([serial / mc2 for serial, mc2 in zip(seconds[SERIAL], seconds[MC2], strict=True)])
    first, last = found[0][MC2]["losses"][0], found[0][MC2]["losses"][-1]
    widths = f"hidden_size {options.hidden_size}, {options.num_hidden_layers} layers, {options.seq_len} tokens"
    link = "link not shaped" if reasons else options.link
    lines = [
        ", ".join(f"{name} {value}" for name, value in machine().items()),
        f"{RANKS} ranks, one thread each, {link}; {widths}, {options.dtype}, {options.rounds} rounds",
        *(f"step {run:<7} {estimate(seconds[run])} s" for run in (MC2, SERIAL)),
        f"serial / mc2 {ratio}: median of the rounds' ratios and its 95% interval",
        f"losses {first:.4f} to {last:.4f}, with and without equal {'bit by bit' if same else 'within the bound'}",
        "fused calls of rank 0 in a step, with their reasons:",
        *(f"  {count:6} {op} on {backend}: {reason}" for op, backend, reason, count in found[0][MC2]["ops"][-1]),
        verdict(ratio.low, [*reasons, *few(options)]),
    ]
    return "\n".join(lines)


def few(options: argparse.Namespace) -> list[str]:
    short = [f"{options.rounds} rounds, fewer than {MIN_ROUNDS}"] if options.rounds < MIN_ROUNDS else []
    shared = ["ranks share cores"] if len(physical_cores()) < RANKS else []
    return short + shared


def verdict(low: float, reasons: list[str]) -> str:
    if reasons:
        return "no claim: " + "; ".join(reasons)
    return "faster with MC2" if low > 1 else "not shown to be faster with MC2"


def run(options: argparse.Namespace, report: Report, module: str = MODULE) -> None:
    """Measure rounds of `module` on each rank and print the report, also of the rounds before Ctrl-C."""
    reasons = [f"the link is not shaped, which needs {need}" for need in missing()]
    found = Found(options)
    try:
        with ranks(options, not reasons, module) as processes:
            measure(options, processes, found)
    except KeyboardInterrupt:
        print("benchmark: interrupted; what was measured until now follows", file=sys.stderr)
    options.rounds = max((len(each["seconds"]) for each in found.ranks[0].values()), default=0)
    if not options.rounds:
        raise SystemExit("benchmark: at least one round must end, got none")
    print(report(options, found.ranks, reasons))


def measure(options: argparse.Namespace, processes: Sequence[RankProcess], found: Found) -> None:
    for number in tqdm(range(-options.warmup, options.rounds), unit="round", file=Screen(sys.stderr)):
        measured = ask(processes, "round", number)
        if number >= 0:
            found.add(measured)
            found.write()


if __name__ == "__main__":
    run(arguments(), report)
