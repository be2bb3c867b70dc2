"""Paddle's own collectives between three emulated devices."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.emulator.emulated import run

SCRIPT = str(Path(__file__).with_name("paddle_collectives.py"))


def test_paddles_collectives_move_and_reduce_every_dtype(tmp_path):
    launch = ("-m", "paddle.distributed.launch", "--devices", "0,1,2", "--log_dir", str(tmp_path))
    options = ("--devices", "3", "--timeout", "60")
    result = run("npu", sys.executable, *launch, SCRIPT, options=options)
    logs = [path.read_text() for path in sorted(tmp_path.glob("workerlog.*"))]
    assert result.returncode == 0, result.stdout[-1000:] + "".join(log[-3000:] for log in logs)
    printed = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"device"')]
    # 8 dtypes x 4 reductions x 2 or, on rank 1, 3 calls; 9 dtypes x 6 movements; 3 calls in each group.
    assert {each["device"]: each["checked"] for each in printed} == {"npu:0": 121, "npu:1": 153, "npu:2": 124}
