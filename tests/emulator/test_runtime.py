"""The emulated device: memory, faults, streams, dtypes; runtime_calls.py and amp_calls.py run on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

from tests.emulator.emulated import FUSIONKIT, passed
from tests.hanging import HANGING

ENDLESS = """
import os, sys, paddle, paddle.distributed as dist
dist.init_parallel_env()
x = paddle.ones([1024])
while True:
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    x.numpy()
    print("PID", os.getpid(), flush=True)
"""


def test_the_device_keeps_its_promises():
    count, _ = passed("npu", "tests/emulator/runtime_calls.py")
    assert count >= 12


def test_mixed_precision_keeps_master_weights():
    count, _ = passed("npu", "tests/emulator/amp_calls.py")
    assert count == 5


def test_a_killed_process_ends_the_others_with_an_error(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    emulate = (*FUSIONKIT, "emulate", "npu", "--devices", "8", "--memory", "1GiB", "--timeout", "60", "--")
    launch = (sys.executable, "-m", "paddle.distributed.launch", "--devices", "0,1,2,3,4,5,6,7")
    command = (*emulate, *launch, "--log_dir", str(tmp_path / "log"), str(script))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        victim = started(tmp_path / "log" / "workerlog.5", deadline=time.monotonic() + HANGING)
        os.kill(victim, signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    told = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert any(re.search(r"emulated npu: .*(has ended|has left)", log) for log in told)


def started(log, deadline):
    while time.monotonic() < deadline:
        found = re.findall(r"PID (\d+)", log.read_text()) if log.exists() else []
        if found:
            return int(found[-1])
        time.sleep(0.2)
    raise AssertionError(f"no collective ran: {log.read_text() if log.exists() else 'no log'}")
