"""Threads of the kernels: how many, where, and after a fork; each in a process of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusionkit import cores
from tests.hanging import HANGING

# Large enough to be shared by five threads.
CALL = """
import os
import numpy as np, fusionkit as fk
from fusionkit_backends.cpu import runtime
x, weight = np.ones((512, 1024), 'f'), np.ones(1024, 'f')
def call():
    return float(fk.fusion_rms_norm(x, weight).sum())
"""
GNU = "from fusionkit_backends.cpu import runtime\nruntime._paddle_libs = lambda: None\n"
# Without the calls that doctor tries in processes of their own, which count no threads.
DOCTOR = """
import contextlib, io, fusionkit.attempt, fusionkit.cli
fusionkit.attempt.attempt = lambda code: (True, "not tried")
with contextlib.redirect_stdout(io.StringIO()) as out:
    fusionkit.cli.main(["doctor"])
print(next(line.strip() for line in out.getvalue().splitlines() if " threads: " in line))
"""
NUM_THREADS = CALL + "print(runtime.native().num_threads())"


def in_process(code, cpus=None, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    place = ["taskset", "--cpu-list", ",".join(map(str, sorted(cpus)))] if cpus else []
    command = [*place, sys.executable, "-c", code]
    run = subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=HANGING)
    return run.stdout.strip() if run.returncode == 0 else run.stderr.strip().splitlines()[-1]


def siblings(cpu):
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return file.read_text().strip() if file.exists() else str(cpu)


def default_count():
    quota = cores.quota()
    count = len({siblings(cpu) for cpu in os.sched_getaffinity(0)})
    return str(count if quota is None else min(count, math.ceil(quota.cores)))


def test_default_is_every_physical_core_that_the_process_may_use():
    assert in_process(NUM_THREADS) == default_count()


def test_taskset_is_respected():
    assert in_process(NUM_THREADS, cpus={min(os.sched_getaffinity(0))}) == "1"


@pytest.mark.parametrize("text, count", [("3", "3"), ("5,2", "5"), ("", None)])
def test_omp_num_threads_is_respected(text, count):
    one_cpu = {min(os.sched_getaffinity(0))}
    assert in_process(NUM_THREADS, cpus=one_cpu, OMP_NUM_THREADS=text) == (count or "1")


def test_omp_num_threads_that_is_no_number_is_named():
    told = 'OMP_NUM_THREADS must be a positive integer up to 8192, got "many". Correct it or unset it'
    assert told in in_process(CALL + "call()", OMP_NUM_THREADS="many")
    assert told in in_process(DOCTOR, OMP_NUM_THREADS="many")


def test_doctor_shows_the_number_and_what_set_it():
    assert in_process(DOCTOR, OMP_NUM_THREADS="3") == "ok      threads: 3 (OMP_NUM_THREADS)"
    assert in_process(DOCTOR).startswith(f"ok      threads: {default_count()} (")


@pytest.mark.parametrize(
    "environment, count", [({}, None), ({"OMP_NUM_THREADS": "1"}, "1"), ({"OMP_NUM_THREADS": "3,1"}, "3")]
)
@pytest.mark.parametrize("order", ["import paddle\n" + NUM_THREADS, CALL + "import paddle\n" + NUM_THREADS])
def test_the_default_is_the_same_whichever_library_is_imported_first(order, environment, count):
    """`import paddle` sets OMP_NUM_THREADS to 1, unless it is one number already."""
    if count is None:
        count = default_count()
    assert in_process(order, **environment) == count


@pytest.mark.parametrize("start", ["", GNU], ids=["Paddle's OpenMP", "GNU OpenMP"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_threads_run_as_are_asked_for(start, count):
    code = start + CALL + "runtime.native()\nbefore = len(os.listdir('/proc/self/task'))\ncall()\n"
    code += "print(len(os.listdir('/proc/self/task')) - before + 1)"
    assert in_process(code, OMP_NUM_THREADS=str(count)) == str(count)


@pytest.mark.parametrize("start", ["", GNU], ids=["Paddle's OpenMP", "GNU OpenMP"])
def test_a_forked_child_computes_what_its_parent_did(start):
    """Both after the parent's threads have started; a child that waits for them would wait for ever."""
    code = (
        start
        + CALL
        + "want = call()\npid = os.fork()\nright = call() == want\nos._exit(not right) if pid == 0 else None\n"
    )
    code += "print(right and os.waitpid(pid, 0)[1] == 0)"
    assert in_process(code, OMP_NUM_THREADS="2") == "True"


def test_paddle_in_a_forked_child_still_runs():
    code = CALL + "import paddle\ncall()\npid = os.fork()\n"
    code += "y = fk.fusion_rms_norm(paddle.to_tensor(x), paddle.to_tensor(weight)).sum().item()\n"
    code += "os._exit(0) if pid == 0 else print(os.waitpid(pid, 0)[1])"
    assert in_process(code, OMP_NUM_THREADS="2").splitlines()[-1] == "0"
