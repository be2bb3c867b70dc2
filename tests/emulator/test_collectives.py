"""Paddle's own collectives, and npu's products fused with them, between emulated devices."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.emulator.emulated import run
from tests.launch import LAUNCH

ROOT = Path(__file__).parents[2]


def checked(script, processes, folder, first_device=0):
    """How many checks each device passed."""
    devices = ",".join(map(str, range(first_device, first_device + processes)))
    launch = (LAUNCH, "--devices", devices, "--log_dir", str(folder))
    options = ("--devices", str(first_device + processes), "--timeout", "60")
    file = str(ROOT / "tests" / "emulator" / script)
    result = run("npu", sys.executable, *launch, file, options=options, PYTHONPATH=str(ROOT))
    logs = [path.read_text() for path in sorted(folder.glob("workerlog.*"))]
    assert result.returncode == 0, result.stdout[-1000:] + "".join(log[-3000:] for log in logs)
    printed = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"device"')]
    return {each["device"]: each["checked"] for each in printed}


def test_paddles_collectives_move_and_reduce_every_dtype(tmp_path):
    # 8 dtypes x 4 reductions x 2 or, on rank 1, 3 calls; 9 dtypes x 6 movements; 3 calls in each group.
    assert checked("paddle_collectives.py", 3, tmp_path) == {"npu:0": 121, "npu:1": 153, "npu:2": 124}


def test_products_fused_with_collectives_keep_their_contract(tmp_path):
    # 2 dtypes x 4 results, 12 refusals.
    assert checked("matmul_collectives.py", 2, tmp_path) == {"npu:0": 20, "npu:1": 20}


# 2 dtypes x 9 calls, with gradients and without, and 3 calls without rows: 39. 7 broken limits, 2 checks each: 14.
# World sizes: 3 ops accept 2, 4 and 8, and refuse 3, 5 and 7, seen by the ranks of such a group. On two devices also
# the bias 1, frozen inputs 16, planted mistakes 8, layers 8, a second group 3, dtypes 9, depths 16.
@pytest.mark.parametrize(
    "world_size, checks",
    [(2, [117] * 2), (4, [59] * 3 + [56]), (8, [65] * 3 + [62] * 2 + [59] * 2 + [56])],
)
def test_npu_kernels_agree_with_float64_or_leave_the_call_to_eager(world_size, checks, tmp_path):
    first = 1 if world_size == 2 else 0  # no rank is then the number of its device
    counts = checked("matmul_collective_kernels.py", world_size, tmp_path, first)
    assert counts == {f"npu:{first + rank}": count for rank, count in enumerate(checks)}
