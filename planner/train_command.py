"""`fusionkit plan train`: the fastest layouts that fit, from models of memory and time."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit_planner.verify import command as verification

from fusionkit import extras
from fusionkit.errors import argument_error

if TYPE_CHECKING:
    from fusionkit_planner.search import Answer, Plan, Question
    from fusionkit_planner.train_chart import Measured
    from fusionkit_planner.verify.run import Wanted

HELP = "find the fastest layout of a training that fits: tensor, pipeline, sharding, micro-batch, recomputation"
ROWS = 128
TOKENS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="FOLDER_OR_CONFIG", help="a Hugging Face folder, or a config.json"
    )
    parser.add_argument("--devices", type=int, default=8, help="that train together (default: 8)")
    parser.add_argument(
        "--device", required=True, help="910b, a100, h100, h200; the file of `fusionkit plan probe` for all others"
    )
    parser.add_argument(
        "--link", action="append", default=[], metavar="DEVICES:GB/s[:US]",
        help="so many devices are joined at this rate of each, and latency; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--global-batch", type=int, help=f"rows of a step (default: {ROWS}, or the devices if there are more)"
    )
    parser.add_argument("--sequence", type=int, help=f"tokens of a row (default: {TOKENS}, or the model's positions)")
    parser.add_argument("--memory", type=float, metavar="GB", help="of one device (default: the device's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every plan and every refusal")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="memory and time of the best ten, as PNG")
    parser.add_argument(
        "--write", type=Path, metavar="FLAGS.json", help="the best plan as flags of the example's sft.py"
    )
    verification.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if absent := extras.missing(*(["matplotlib"] if options.chart else [])):
        raise ValueError(f"plan train: --chart: {absent}")
    from fusionkit_planner import search, train_report
    from fusionkit_planner.result_files import require_writable, write_json

    require_writable("plan train", json=options.json, chart=options.chart, write=options.write)
    question = asked(options)
    wanted = verification.wanted(options, question.memory_bytes)
    answer = search.search(question, _shown)
    if options.json:
        write_json(options.json, train_report.as_json(answer))
    if not answer.plans:
        raise ValueError(train_report.nothing(answer))
    print(train_report.text(answer), flush=True)
    _write_flags(options, answer, answer.plans[0])
    if options.chart:
        _draw(options.chart, answer)
    return 0 if wanted is None else _verify(options, answer, wanted)


def _verify(options: argparse.Namespace, answer: Answer, wanted: Wanted) -> int:
    """The answer's files are there; what was measured takes their place."""
    from fusionkit_planner import train_report
    from fusionkit_planner.result_files import write_json
    from fusionkit_planner.verify import report

    found = verification.verify(options, answer, wanted)
    where = wanted.launch.place
    print("\n" + report.text(answer.question, where, found))
    if options.json:
        told = report.as_json(answer.question, where, found)
        write_json(options.json, {**train_report.as_json(answer), "verification": told})
    if found.best is not None:
        _write_flags(options, answer, found.best)
    if options.chart:
        _draw(options.chart, answer, found.marks)
    return 128 + found.signal if found.signal else int(found.best is None)


def _write_flags(options: argparse.Namespace, answer: Answer, plan: Plan) -> None:
    from fusionkit_planner import sft_flags
    from fusionkit_planner.result_files import write_json

    if options.write:
        question = answer.question
        write_json(options.write, sft_flags.flags(plan.layout, question.sequence, question.rates.dtype))


def asked(options: argparse.Namespace) -> Question:
    """What the options mean.

    Raises:
        ValueError: one is wrong, or what it names is unknown.
    """
    from fusionkit_planner import architecture, known_rates, search

    model = architecture.read(options.model)
    rates = known_rates.find(options.device, *verification.links(options))
    _require(options.devices >= 1, "--devices", "at least 1", options.devices)
    known_rates.require_joined(rates, options.devices)
    batch = max(ROWS, options.devices) if options.global_batch is None else options.global_batch
    _require(batch >= 1, "--global-batch", "at least 1", batch)
    positions = positions_of(options.model)
    sequence = min(TOKENS, positions or TOKENS) if options.sequence is None else options.sequence
    _require(sequence >= 1, "--sequence", "at least 1", sequence)
    fits = positions is None or sequence <= positions
    _require(fits, "--sequence", f"at most {positions}, the model's positions", sequence)
    memory = rates.memory_bytes / 1e9 if options.memory is None else options.memory
    rule = "a finite number above 0" if options.memory is not None else "given: nobody states it for this device"
    _require(0 < memory < math.inf, "--memory", rule, memory, "Write GB of one device, such as --memory 64")
    return search.Question(model, rates, options.devices, batch, sequence, memory * 1e9)


def positions_of(model: str) -> int | None:
    """Of a model's configuration; None where it states none."""
    from fusionkit_planner import architecture

    config = architecture.configuration(model)
    stated = config.get("max_position_embeddings") is not None
    return architecture.size(config, "max_position_embeddings") if stated else None


def _require(condition: bool, option: str, rule: str, got: object, advice: str = "") -> None:
    if not condition:
        raise argument_error("plan train", option, rule, got, advice=advice)


def _shown(candidates: Sequence[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    shown: Iterable[Any] = tqdm(candidates, desc="layouts", unit="", leave=False, delay=1, disable=None)
    return shown


def _draw(path: Path, answer: Answer, measured: Measured | None = None) -> None:
    from fusionkit_planner import train_chart

    train_chart.draw(path, answer, measured)
