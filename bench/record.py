"""The machine, and results as JSON in pytest-benchmark's format: `pytest-benchmark compare` reads two of them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit_bench.result import Result
from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from pytest_benchmark.utils import get_commit_info


def machine() -> dict[str, Any]:
    info: dict[str, Any] = pytest_benchmark_generate_machine_info()
    return info


def versions() -> dict[str, str]:
    names = ("fusionkit", "paddlepaddle", "torch", "numpy")
    installed = {each.metadata["Name"].lower() for each in importlib.metadata.distributions() if each.metadata["Name"]}
    return {name: importlib.metadata.version(name) for name in names if name in installed}


def title(info: dict[str, Any], num_threads: int, rounds: int) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    today = datetime.date.today().isoformat()
    return f"{info['cpu'].get('brand_raw', info['machine'])}, {num_threads} threads, {listed}; {rounds} rounds; {today}"


def write(path: Path, results: Sequence[Result], info: dict[str, Any]) -> None:
    record = {
        "machine_info": info,
        "commit_info": get_commit_info(),
        "benchmarks": [entry for result in results for entry in entries(result)],
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": importlib.metadata.version("pytest-benchmark"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


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
                    "flops": cost.flops,
                    "bytes_read": cost.bytes_read,
                    "bytes_written": cost.bytes_written,
                    "bound_by": result.bound_by(direction),
                },
                "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(stats.data)},
                "stats": {**stats.as_dict(), "iterations": 1, "data": stats.data},
            }
        )
    return made
