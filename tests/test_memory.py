"""Memory that was freed is used again, without a page fault: an op's results always, the rest when a program asks."""

import os
import subprocess
import sys

import pytest
from fusionkit_backends.cpu import freed_memory

import fusionkit

PROGRAM = """
import resource, sys
import numpy as np
import fusionkit
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():
    np.full(64 << 20, 1, np.uint8)
fill()
before = faults()
for _ in range(4):
    fill()
print(faults() - before)
"""


# Results of 27 MiB, and of 54 MiB, which glibc never keeps; on the main thread and on another.
OF_OPS = '''
import resource, threading
import numpy as np
import paddle
import fusionkit
paddle.set_device("cpu")
def faults_of(call):
    call(), call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(), call()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
class Downstream(paddle.autograd.PyLayer):
    """Hands over a gradient made before: `paddle.grad` copies one that it is given."""
    @staticmethod
    def forward(ctx, y):
        return paddle.zeros([])
    @staticmethod
    def backward(ctx, dloss):
        return grad
found = []
for dtype in ("bfloat16", "float32"):
    gate, up, grad = (paddle.ones([1024, 13824], "float32").astype(dtype) for _ in range(3))
    gate.stop_gradient = up.stop_gradient = False
    def call():
        with fusionkit.use_backend("cpu"):
            paddle.grad(Downstream.apply(fusionkit.swiglu(gate, up)), [gate, up])
    faults_of(call)
    thread = threading.Thread(target=faults_of, args=(call,))
    thread.start(), thread.join()
arrays = np.ones((2, 1024, 13824), np.float32)
faults_of(lambda: fusionkit.swiglu(*arrays))
print(*found)
'''
OF_BYTES = """
import numpy as np
import fusionkit
from fusionkit_backends.cpu import runtime
rng = np.random.default_rng(0)
held = []
def made():
    rows = int(rng.integers(1, 400))
    return fusionkit.swiglu(*np.ones((2, rows, 4096), np.float32))
for _ in range(60):
    held = [made() for _ in range(int(rng.integers(1, 6)))]
    bytes = runtime.native().block_bytes()
    assert bytes["in_use"] + bytes["freed"] <= bytes["peak"], bytes
    assert all((each == held[0][0, 0]).all() for each in held)
del held
print(*runtime.native().block_bytes().values())
"""


def faults_of_four_arrays(call: str) -> int:
    """Of 64 MiB each: 16,384 pages of 4 KiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_importing_fusionkit_changes_nothing():
    # The kernel may hand out huge pages by itself, 32 of 2 MiB an array: still a fault each.
    assert faults_of_four_arrays("") >= 4 * 32


def printed(program: str, **variables: str) -> list[int]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_repeated_op_takes_no_fresh_pages_in_a_process_as_it_comes():
    assert max(printed(OF_OPS)) < 200


def test_switched_off_each_result_is_fetched_anew():
    pages = 2 * 1024 * 13824 * 2 // 4096
    small, _, large, _, _ = printed(OF_OPS, **{freed_memory.SETTING: "0"})
    # The kernel may hand out huge pages by itself.
    assert small > 3 * pages // 512 and large > 6 * pages // 512
    assert printed(OF_BYTES, **{freed_memory.SETTING: "0"}) == [0, 0, 0]


def test_results_and_freed_blocks_never_take_more_than_results_once_did():
    in_use, freed, peak = printed(OF_BYTES)
    assert in_use == 0 and 4 << 20 < freed <= peak


def test_doctor_says_what_becomes_of_freed_results(monkeypatch):
    assert "serve the next call" in freed_memory.check().found
    monkeypatch.setattr(freed_memory.settings, "value", {freed_memory.SETTING: "0"}.get)
    assert "go back to the system" in freed_memory.check().found


@pytest.mark.parametrize("call", ["fusionkit.keep_freed_memory()", "fusionkit.keep_freed_memory(0)"])
def test_freed_memory_is_kept(call):
    assert faults_of_four_arrays(call) < 32


def test_a_second_call_does_nothing():
    assert faults_of_four_arrays("fusionkit.keep_freed_memory(0); fusionkit.keep_freed_memory()") < 32


def test_large_arrays_lie_in_huge_pages():
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as setting:
        if "[never]" in setting.read():
            pytest.skip("transparent huge pages are switched off on this machine")
    program = (
        "import fusionkit, numpy as np, re\n"
        "fusionkit.keep_freed_memory()\n"
        "held = np.full(64 << 20, 1, np.uint8)\n"
        "print(re.search(r'AnonHugePages: +(\\d+)', open('/proc/self/smaps_rollup').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 32 << 10  # KiB: at least half of it, when memory is fragmented


def test_an_impossible_size_is_refused_by_name():
    with pytest.raises(ValueError, match="huge_page_bytes must be at least 0, got -1"):
        fusionkit.keep_freed_memory(-1)
    done = subprocess.run(
        [sys.executable, "-c", "import fusionkit; fusionkit.keep_freed_memory(1 << 60)"], capture_output=True, text=True
    )
    assert "the system refused to reserve 1073741824.0 GiB" in done.stderr
