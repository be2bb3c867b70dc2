"""Measures the gpu backend on the card of this machine, with its own PyTorch and Triton and without a network.

    python backends/gpu/bench_gpu.py --only parity memory attention      # pieces, each well under ten minutes
    python backends/gpu/bench_gpu.py --json gpu.json --charts charts     # all of them; later runs add to the file
    python backends/gpu/bench_gpu.py --dry-run                           # on the CPU, interpreted: no figures

Contestants are timed in interleaved rounds beside the card's own copy or product rate; medians with 95% intervals.
The promises are printed with the figures that decide them. Exit code 1: something computes wrong results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PIECES = ("parity", "memory", "attention", "decode", "cross_entropy", "layer", "step", "cold_start", "tiles")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PIECES, default=PIECES[:-1], help="default: all but tiles")
    parser.add_argument("--rounds", type=int, default=15, help="readings of each contestant (default: 15)")
    parser.add_argument("--lengths", nargs="+", type=int, help="these sequence lengths (default: 2048 to 16384)")
    parser.add_argument("--json", type=Path, help="write the figures there; a file that exists keeps its other pieces")
    parser.add_argument("--charts", type=Path, help="draw a chart a piece into this folder (needs matplotlib)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which compiles for minutes")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, interpreted")
    parser.add_argument("--cold-start-child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def find_packages() -> None:
    """A checkout is enough: what is not installed is taken from it."""
    if importlib.util.find_spec("fusionkit") is None:
        sys.path.insert(0, str(ROOT))
    for name, folder in (("fusionkit_backends", "backends"), ("fusionkit_bench", "bench")):
        if importlib.util.find_spec(name) is None:
            package = types.ModuleType(name)
            package.__path__ = [str(ROOT / folder)]
            sys.modules[name] = package


def run_piece(piece: str, setting: Any) -> list[Any]:
    from fusionkit_backends.gpu.benchmark import (
        attention,
        cold_start,
        cross_entropy,
        decode,
        memory_bound,
        parity,
        tiles,
        training,
    )

    runs = {
        "parity": parity.run,
        "memory": memory_bound.run,
        "attention": attention.run,
        "decode": decode.run,
        "cross_entropy": cross_entropy.run,
        "layer": training.layers,
        "step": training.steps,
        "tiles": tiles.run,
        "cold_start": lambda setting: cold_start.run(setting, Path(__file__).resolve()),
        "memory_of_cross_entropy": cross_entropy.memory,
    }
    found = []
    for row in runs[piece](setting):
        if not (piece == "parity" and row.get("share", 2) <= 1):
            print(row, flush=True)
        found.append(row if isinstance(row, dict) else row.as_json())
    return found


def with_memory(names: list[str]) -> list[str]:
    """What cross_entropy holds is a piece of its own in the file."""
    return [each for name in names for each in (name, f"memory_of_{name}")[: 2 if name == "cross_entropy" else 1]]


def wrong(rows: list[dict[str, Any]]) -> int:
    """The cases outside their bound; an error that is no number counts too."""
    return sum(not row.get("share", 2) <= 1 for row in rows)


def report(pieces: dict[str, Any], dry_run: bool) -> None:
    from fusionkit_backends.gpu.benchmark import targets

    print("\npromises:" + (" (dry run: nothing is measured)" if dry_run else ""))
    for promise, verdict, figure in targets.judged(pieces, dry_run):
        print(f"  {verdict:<8} {promise}  {figure}".rstrip())


def main() -> int:
    options = parse()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    find_packages()
    from fusionkit_backends.gpu.benchmark import cold_start, setting

    on_card = options.rounds, not options.no_compile, options.lengths
    chosen = setting.dry() if options.dry_run else setting.on_card(*on_card)
    if options.cold_start_child:
        print(json.dumps(cold_start.child(chosen)))
        return 0
    pieces: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    described, failures = setting.machine(chosen), 0
    print("\n".join(f"{name}: {value}" for name, value in described.items()))
    for piece in with_memory(options.only):
        print(f"\n== {piece}", flush=True)
        start = time.monotonic()
        rows = run_piece(piece, chosen)
        pieces[piece] = {"machine": described, "seconds": time.monotonic() - start, "command": sys.argv, "rows": rows}
        if piece == "parity":
            failures = wrong(rows)
            print(f"{len(rows) - failures} of {len(rows)} cases right")
        if options.json:
            options.json.write_text(json.dumps(pieces, indent=1))
    report(pieces, options.dry_run)
    if options.charts:
        from fusionkit_backends.gpu.benchmark import chart

        options.charts.mkdir(parents=True, exist_ok=True)
        print("\n".join(map(str, chart.draw(pieces, options.charts))))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
