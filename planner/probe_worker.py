"""One process of the probe: reads what to time, times it while the other processes time the same, and tells.

python -m fusionkit_planner.probe_worker

A line of input is JSON: {"what": "product", "rows": ..., "in_features": ..., "out_features": ..., "dtype": ...},
{"what": "attention", "rows": ..., "heads": ..., "head_dim": ..., "dtype": ...}, {"what": "memory", "num_bytes": ...,
"dtype": ...}, {"what": "launch", "dtype": ...} or {"what": "about"}.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle

import fusionkit as fk
from fusionkit import keep_freed_memory

LEAST_SECONDS, LEAST_CALLS = 0.1, 3
MOST_SECONDS = 1.0  # of one timing; a first call that is slower is the only one
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}


def main() -> None:
    keep_freed_memory()  # as in training: results are allocated anew in each call
    jobs: dict[str, Callable[..., Any]] = {"product": product, "attention": attention, "memory": memory}
    jobs |= {"launch": launch, "about": about}
    with paddle.no_grad():
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(jobs[asked.pop("what")](**asked)), flush=True)


def product(rows: int, in_features: int, out_features: int, dtype: str) -> float:
    """Seconds of [rows, in_features] @ [in_features, out_features]."""
    x, weight = (paddle.randn(shape).cast(dtype) for shape in ([rows, in_features], [in_features, out_features]))
    return timed(lambda: fk.fused_linear(x, weight))


def memory(num_bytes: int, dtype: str) -> float:
    """Seconds of a swiglu that reads and writes so many bytes."""
    return _swiglu([num_bytes // (3 * ITEMSIZE[dtype] * 1024), 1024], dtype)


def _swiglu(shape: list[int], dtype: str) -> float:
    gate, up = (paddle.randn(shape).cast(dtype) for _ in range(2))
    return timed(lambda: fk.swiglu(gate, up))


def attention(rows: int, heads: int, head_dim: int, dtype: str) -> float:
    """Seconds of causal attention over one sequence of so many rows."""
    q, k, v = (paddle.randn([1, rows, heads, head_dim]).cast(dtype) for _ in range(3))
    return timed(lambda: fk.flash_attention(q, k, v, causal=True))


def launch(dtype: str) -> float:
    """Seconds of a kernel with nothing to do."""
    return _swiglu([1, 16], dtype)


def timed(call: Callable[[], paddle.Tensor]) -> float:
    """The fastest call, which other programs have disturbed least. A device works on after a call has returned; reading
    an element waits for it."""
    call().reshape([-1])[0].item()
    begun, clock = time.perf_counter(), clock_of()
    found: list[float] = []
    while len(found) < LEAST_CALLS or time.perf_counter() - begun < LEAST_SECONDS:
        before = clock()
        call().reshape([-1])[0].item()
        found.append(clock() - before)
        if time.perf_counter() - begun > MOST_SECONDS:
            break
    return min(found)


def clock_of() -> Callable[[], float]:
    """Seconds. Of one thread on a host they are processor time, which other programs on its core do not add to."""
    is_one_thread = os.environ.get("OMP_NUM_THREADS") == "1" and paddle.get_device() == "cpu"
    return time.process_time if is_one_thread else time.perf_counter


def about() -> dict[str, Any]:
    """The device's kind, name and bytes; 0 bytes where Paddle does not tell."""
    device = paddle.get_device()
    if device == "cpu":
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"device": "cpu", "name": _processor(), "memory_bytes": size}
    if device.startswith("gpu"):
        found = paddle.device.cuda.get_device_properties()
        return {"device": "gpu", "name": found.name, "memory_bytes": found.total_memory}
    return {"device": device.partition(":")[0], "name": device.partition(":")[0], "memory_bytes": 0}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
