"""The machine, and results as JSON in pytest-benchmark's format: `pytest-benchmark compare` reads two of them."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit_bench import processor
from fusionkit_bench.result import Result
from fusionkit_bench.subject import Subject
from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from pytest_benchmark.stats import Stats
from pytest_benchmark.utils import get_commit_info

from fusionkit.spec import Cost

COST = [field.name for field in dataclasses.fields(Cost)]


def machine() -> dict[str, Any]:
    info: dict[str, Any] = pytest_benchmark_generate_machine_info()
    return info | {"processor": processor.name()}


def versions() -> dict[str, str]:
    names = ("fusionkit", "paddlepaddle", "torch", "numpy")
    installed = {each.metadata["Name"].lower() for each in importlib.metadata.distributions() if each.metadata["Name"]}
    return {name: importlib.metadata.version(name) for name in names if name in installed}


def title(info: dict[str, Any], num_threads: int, rounds: int, is_quick: bool) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    today = datetime.date.today().isoformat()
    took = f"quick: one call of each op, {rounds} rounds" if is_quick else f"{rounds} rounds"
    return f"{info['processor']}, {num_threads} threads, {listed}; {took}; {today}"


def write(path: Path, results: Sequence[Result], info: dict[str, Any], title: str) -> None:
    record = {
        "title": title,
        "machine_info": info,
        "commit_info": get_commit_info(),
        "benchmarks": [entry for result in results for entry in entries(result)],
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": importlib.metadata.version("pytest-benchmark"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def read(path: Path) -> tuple[str, list[Result]]:
    """The title and the results of a file that `write` made."""
    record = json.loads(path.read_text())
    groups: dict[tuple[Subject, bool], list[dict[str, Any]]] = {}
    for entry in record["benchmarks"]:
        op_name, case_name, dtype, *_, state = entry["group"].split(" ")
        groups.setdefault((Subject(op_name, case_name, dtype), state == "cold"), []).append(entry)
    return record["title"], [result_of(*key, entries) for key, entries in groups.items()]


def result_of(subject: Subject, cold: bool, entries: Sequence[dict[str, Any]]) -> Result:
    costs, stats = {}, {}
    for entry in entries:
        direction = " ".join(entry["group"].split(" ")[3:-1])
        costs[direction] = Cost(*(entry["extra_info"][name] for name in COST))
        stats[entry["name"], direction] = Stats()
        for seconds in entry["stats"]["data"]:
            stats[entry["name"], direction].update(seconds)
    return Result(subject, costs, cold, stats)


def entries(result: Result) -> list[dict[str, Any]]:
    subject = result.subject
    made = []
    for (contestant, direction), stats in result.stats.items():
        group = f"{subject.op_name} {subject.case_name} {subject.dtype} {direction} {result.state}"
        cost = result.costs[direction]
        made.append(
            {
                "group": group,
                "name": contestant,
                "fullname": f"{group} {contestant}",
                "params": None,
                "param": None,
                "extra_info": {
                    **dataclasses.asdict(cost),
                    "bound_by": result.bound_by(direction),
                    "ceiling": result.nearest_ceiling(direction),
                },
                "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(stats.data)},
                "stats": {**stats.as_dict(), "iterations": 1, "data": stats.data},
            }
        )
    return made
