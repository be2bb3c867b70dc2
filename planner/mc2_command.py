"""`fusionkit plan mc2`: a simulator on paper, of what overlap can give on devices that are not here."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionkit import extras
from fusionkit.errors import argument_error

HELP = "simulate on paper: how much of Llama 2 13B's collectives the products of a device can hide"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", required=True, help="a device model of a backend, or how its name begins")
    parser.add_argument("--tp", type=int, default=8, help="devices of tensor parallelism (default: 8)")
    parser.add_argument("--tokens", type=int, default=4096, help="of one micro-batch, before sharding (default: 4096)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="hidden against c, as PNG")


def run(options: argparse.Namespace) -> int:
    from fusionkit_planner import devices, report
    from fusionkit_planner.result_files import require_writable, write_json

    require_writable("plan", json=options.json, chart=options.chart)
    device = devices.find(options.device)
    check(options.tp, options.tokens)
    if absent := extras.missing(*(["matplotlib"] if options.chart else [])):
        raise ValueError(f"plan: --chart: {absent}")
    print(report.text(device, options.tokens, options.tp))
    if options.json:
        write_json(options.json, report.as_json(device, options.tokens, options.tp))
    if options.chart:
        from fusionkit_planner import chart

        chart.draw(options.chart, device, options.tokens, options.tp)
    return 0


def check(tp: int, tokens: int) -> None:
    """What divides the 40 heads and the intermediate size of Llama 2 13B, and shards of at least one token."""
    if tp not in (2, 4, 8):
        raise argument_error("plan", "--tp", "2, 4 or 8, which divide the model's heads and intermediate size", tp)
    if tokens < tp or tokens % tp:
        raise argument_error("plan", "--tokens", f"a multiple of --tp {tp}", tokens)
