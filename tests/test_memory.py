"""Memory that was freed is used again, without a page fault, once a program asked for that; never before."""

import subprocess
import sys

import pytest

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


def faults_of_four_arrays(call: str) -> int:
    """Of 64 MiB each: 16,384 pages of 4 KiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_importing_fusionkit_changes_nothing():
    # The kernel may hand out huge pages by itself, 32 of 2 MiB an array: still a fault each.
    assert faults_of_four_arrays("") >= 4 * 32


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
