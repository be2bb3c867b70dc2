"""The options of `fusionkit plan train --verify`, and what the command shows while plans run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit import extras
from fusionkit.errors import argument_error

if TYPE_CHECKING:
    from fusionkit_planner.search import Answer, Plan
    from fusionkit_planner.verify.measured import Measured, Verified
    from fusionkit_planner.verify.run import Wanted

STEPS = 4
REHEARSED = 2  # steps: the optimizer's state comes with the first update, so the second has the peak
LIMIT = 1800.0
OPTIONS = ("ways", "apart", "steps", "limit", "entry", "data", "shape")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run the best plans, and decide by measurement")
    group.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="run the best N of the list here, or on emulated devices for their memory alone",
    )
    group.add_argument(
        "--ways", action="store_true", help="of each way to divide the devices its best plan, instead of the best plans"
    )
    group.add_argument(
        "--apart", type=float, metavar="PERCENT", help="leave out plans that are less than so much slower than the last"
    )
    group.add_argument(
        "--steps", type=int, help=f"of each run; the first does not count (default: {STEPS}; {REHEARSED} if rehearsed)"
    )
    group.add_argument("--limit", type=float, metavar="SECONDS", help=f"of each run (default: {LIMIT:.0f})")
    group.add_argument("--entry", type=Path, metavar="SFT.py", help="the training command (default: the repository's)")
    group.add_argument("--data", type=Path, metavar="FOLDER", help="with train.json (default: random words)")
    group.add_argument(
        "--shape", metavar="RATE", help="such as 200mbit: each process is a host, on a link of this rate; needs root"
    )


def wanted(options: argparse.Namespace, memory_bytes: float) -> Wanted | None:
    """What is to be run, checked before the search; None without `--verify`.

    Raises:
        ValueError: an option is wrong, or something is missing.
    """
    if options.verify is None:
        for name in OPTIONS:
            _require(not getattr(options, name), f"--{name}", "given with --verify", "none")
        return None
    limit = LIMIT if options.limit is None else options.limit
    _require(options.verify >= 1, "--verify", "at least 1", options.verify)
    _require(not options.apart or options.apart > 0, "--apart", "at least 0", options.apart)
    few = options.steps is not None and options.steps < 2
    _require(not few, "--steps", "at least 2, for the first does not count", options.steps)
    _require(limit > 0, "--limit", "above 0", limit)
    has_data = options.data is None or (options.data / "train.json").is_file() or (options.data / "train").is_dir()
    _require(has_data, "--data", "a folder with train.json", options.data)
    if absent := extras.missing("paddle", "tokenizers", "safetensors"):
        raise ValueError(f"plan train: --verify: {absent}")
    from fusionkit_planner.verify import commands, material, place, run

    entry, where, model = place.entry(options.entry), place.find(options.device), Path(options.model)
    if options.shape:
        commands.require_link(options.shape, where, options.devices)
    if not material.is_complete(model, not where.is_rehearsed):
        material.creator(entry)
    launch = commands.Launch(where, options.devices, memory_bytes, options.shape or "")
    steps = options.steps or (REHEARSED if where.is_rehearsed else STEPS)
    return run.Wanted(model, options.data, entry, launch, steps, limit)


def links(options: argparse.Namespace) -> tuple[list[str], str]:
    """(`--link`, or what `--shape` makes of it, whose they are)."""
    from fusionkit_planner.known_rates import USERS

    if not options.shape or options.link:
        return list(options.link), USERS
    from fusionkit_planner.verify.commands import bytes_per_s

    return [f"{options.devices}:{bytes_per_s(options.shape) / 1e9}"], f"--shape {options.shape}, less headers"


def verify(options: argparse.Namespace, answer: Answer, what: Wanted) -> Verified:
    """Run the plans. Their progress and their results go to stderr."""
    from fusionkit_planner.verify import report, run
    from tqdm import tqdm

    plans = run.chosen(answer.plans, options.verify, options.ways, (options.apart or 0.0) / 100)
    is_rehearsed = what.launch.place.is_rehearsed
    print(f"{len(plans)} plans are {'rehearsed' if is_rehearsed else 'run'} on {what.launch.place}", file=sys.stderr)
    with tqdm(total=len(plans) * what.steps, unit="step", leave=False, disable=None) as bar:

        def watch(number: int, plan: Plan, steps: int) -> None:
            bar.set_description(f"plan {number + 1} of {len(plans)}", refresh=False)
            bar.n = number * what.steps + steps
            bar.refresh()

        def tell(run: Measured) -> None:
            tqdm.write(report.line(run), file=sys.stderr)

        return run.verify(answer, plans, what, watch, tell)


def _require(condition: bool, option: str, rule: str, got: object) -> None:
    if not condition:
        raise argument_error("plan train", option, rule, got)
