"""What results in fresh memory cost, and what a process holds that uses freed memory again.

    python -m fusionkit_bench.fresh_memory [--rounds 15]

First each op, forward and backward, in four processes that take turns: freed blocks returned to the system
(FUSIONKIT_CPU_REUSE_MEMORY=0), as it comes, after `keep_freed_memory`, and PyTorch as it comes. Then a loop of layers
whose rows change in every step, with blocks returned and as it comes: the memory that it holds must not grow.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from fusionkit_bench import processor
from fusionkit_bench.contestants import as_it_comes
from fusionkit_bench.markdown import markdown
from fusionkit_bench.subject import TRAINING, Subject
from fusionkit_bench.worker import Kind, Worker

from fusionkit import cores

RETURNED = ("FUSIONKIT_CPU_REUSE_MEMORY", "0")
KINDS = (
    Kind("returned", as_it_comes.__name__, False, True, (RETURNED,)),
    Kind("as it comes", as_it_comes.__name__, False, True),
    Kind("kept", as_it_comes.__name__, True, True),
    Kind("PyTorch as it comes", "torch", False, False),
)
SUBJECTS = (
    Subject("swiglu", "T2048xI13824", "bfloat16"),
    Subject("swiglu", "T2048xI13824", "float32"),
    Subject("fusion_rms_norm", "T2048xH5120", "bfloat16"),
    Subject("fusion_rms_norm", "T2048xH5120", "float32"),
    Subject("flash_attention", "S1024-causal", "bfloat16"),
)
WARM_UP = 3
STEPS = (10, 30, 60)
HIDDEN, INTERMEDIATE, LAYERS, MOST_ROWS = 256, 704, 2, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    flags = parser.parse_args()
    if flags.loop:
        return loop()
    rows = [row for subject in SUBJECTS for row in measured(subject, flags.rounds)]
    print(f"{processor.name()}\n")
    print(markdown(("op", "call", "dtype", "process", "fastest ms", "median ms", "page faults"), rows), flush=True)
    for name, variables in (("returned", dict((RETURNED,))), ("as it comes", {})):
        command = [sys.executable, "-m", "fusionkit_bench.fresh_memory", "--loop"]
        done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
        print(f"loop, {name}: {done.stdout.strip()}")


def measured(subject: Subject, rounds: int) -> list[tuple[str, ...]]:
    """One line a process, of `rounds` in which each makes one call."""
    workers = [Worker(kind, "cpu", cores.for_arithmetic().number) for kind in KINDS]
    for worker in workers:
        worker.prepare(subject)
    keys = {worker: next(key for key in worker.prepared()[0] if key[1] == TRAINING) for worker in workers}
    seconds: dict[Worker, list[float]] = {worker: [] for worker in workers}
    faults: dict[Worker, list[int]] = {worker: [] for worker in workers}
    for turn in range(WARM_UP + rounds):
        for worker in workers:
            before = worker.page_faults()
            elapsed = worker.time(keys[worker], 1, False)
            if turn >= WARM_UP:
                seconds[worker].append(elapsed)
                faults[worker].append(worker.page_faults() - before)
    for worker in workers:
        worker.close()
    return [
        (
            subject.op_name,
            subject.case_name,
            subject.dtype,
            worker.kind.name,
            f"{min(seconds[worker]) * 1e3:.1f}",
            f"{statistics.median(seconds[worker]) * 1e3:.1f}",
            f"{statistics.median(faults[worker]):.0f}",
        )
        for worker in workers
    ]


def loop() -> None:
    """Prints what the process holds after some of the steps, and its peak."""
    import numpy as np
    import paddle

    import fusionkit as fk

    rng = np.random.default_rng(0)
    shapes = [(HIDDEN,), (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)] * LAYERS
    weights = [paddle.create_parameter(shape, "float32") for shape in shapes]
    optimizer = paddle.optimizer.SGD(1e-3, weights)
    for step in range(1, STEPS[-1] + 1):
        x = paddle.ones([int(rng.integers(MOST_ROWS // 4, MOST_ROWS + 1)), HIDDEN])
        for norm, gate, up, down in zip(*[iter(weights)] * 4, strict=True):
            normal = fk.fusion_rms_norm(x, norm)
            x = x + fk.fused_linear(fk.swiglu(fk.fused_linear(normal, gate), fk.fused_linear(normal, up)), down)
        x.mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        if step in STEPS:
            print(f"{held('VmRSS')} MB after {step} steps,", end=" ")
    print(f"peak {held('VmHWM')} MB")


def held(line: str) -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1000


if __name__ == "__main__":
    main()
