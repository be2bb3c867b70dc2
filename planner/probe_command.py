"""`fusionkit plan probe`: measures the machine at hand, for `fusionkit plan train --device probe.json`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusionkit import extras
from fusionkit.cores import for_arithmetic
from fusionkit.dtypes import FLOATING
from fusionkit.errors import argument_error

HELP = "measure this machine's products, memory and collectives, for `plan train --device FILE`"
BUSY = 1.5  # of the cores, all of which the probe itself uses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the rates go")
    parser.add_argument("--devices", type=int, default=1, help="processes that work at the same time (default: 1)")
    parser.add_argument("--model", metavar="FOLDER_OR_CONFIG", help="time this model's own products too")
    parser.add_argument("--dtype", choices=FLOATING, default="bfloat16", help="of products (default: bfloat16)")
    parser.add_argument("--seconds", type=float, default=110, help="that it may take, about (default: 110)")


def run(options: argparse.Namespace) -> int:
    if options.devices < 1:
        raise argument_error("plan probe", "--devices", "at least 1", options.devices)
    if not 0 < options.seconds < math.inf:
        rule, advice = "a finite number above 0", "About 110 measure all shapes"
        raise argument_error("plan probe", "--seconds", rule, options.seconds, advice=advice)
    if absent := extras.missing("paddle"):
        raise ValueError(f"plan probe: {absent}")
    from fusionkit_planner import architecture, probe
    from fusionkit_planner.result_files import require_writable, write_json

    model = architecture.read(options.model) if options.model else None
    require_writable("plan probe", json=options.json)
    rates = probe.probe(probe.Wanted(options.devices, options.seconds, options.dtype, model), _shown)
    write_json(options.json, rates.as_json())
    print(text(rates, options.json))
    if remark := busy():
        print(remark, file=sys.stderr)
    return 0


def busy() -> str:
    """That the machine did other work meanwhile; empty if it did not."""
    load, cores = os.getloadavg()[0], for_arithmetic().number
    if load <= BUSY * cores:
        return ""
    return f"plan probe: load {load:.1f} on {cores} cores: other programs ran. Measure again when they have ended"


def _shown(items: Sequence[Any], name: str) -> Iterable[Any]:
    from tqdm import tqdm

    shown: Iterable[Any] = tqdm(items, desc=name, leave=False, delay=1, disable=None)
    return shown


def text(rates: Any, path: Path) -> str:
    """What was measured, in a few lines."""
    slowest, fastest = min(rates.products, key=lambda one: one.flops), max(rates.products, key=lambda one: one.flops)
    lines = [
        f"Measured on {rates.name}:",
        f"  products, {rates.dtype}: {len(rates.products)} shapes, {_rate(slowest)} to {_rate(fastest)}",
        f"  attention: {rates.attention_flops / 1e9:.1f} GFLOP/s",
        f"  memory: {rates.memory_bandwidth / 1e9:.1f} GB/s; {rates.memory_bytes / 1e9:.1f} GB for each device",
        f"  a kernel with nothing to do: {rates.launch_seconds * 1e6:.0f} us",
    ]
    lines += [
        f"  {level.devices} devices: {level.bandwidth / 1e9:.2f} GB/s each, {level.latency * 1e6:.0f} us"
        for level in rates.levels
    ]
    return "\n".join([*lines, f"Written to {path}. Next: fusionkit plan train --device {path} --model FOLDER"])


def _rate(product: Any) -> str:
    shape = f"{product.rows} x {product.in_features} x {product.out_features}"
    return f"{product.flops / 1e9:.1f} GFLOP/s ({shape})"
