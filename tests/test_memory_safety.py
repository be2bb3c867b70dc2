"""Kernels between faulting pages, on every instruction set: masked vectors included, which sanitizers miss."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from fusionkit_backends.cpu import runtime

from tests import kernel_program
from tests.guard_pages import MISTAKES

pytestmark = pytest.mark.xdist_group("memory safety")

ISAS = runtime.native().tested_isas()
PLANTED = [f"{mistake} {dtype}" for mistake in MISTAKES for dtype in ("float32", "bfloat16", "float16")]


@pytest.fixture(scope="module")
def program():
    """The kernel library, as it was built, with its stand-alone checks."""
    return kernel_program.build_program(kernel_program.NATIVE)


def run(*command):
    return subprocess.run([*map(str, command)], cwd=kernel_program.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
def test_every_public_function_stays_in_its_memory_and_is_right(program, isa):
    result = run(program, "--isa", isa)
    assert result.returncode == 0, result.stdout
    assert int(re.search(rf"{isa}: \d+ cases, (\d+) results, 0 wrong", result.stdout)[1]) > 1000


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mistake", PLANTED)
def test_a_kernel_that_leaves_its_memory_is_caught(program, isa, mistake):
    result = run(program, "--isa", isa, "--plant", mistake)
    assert result.returncode == 1 and "a kernel left its memory" in result.stdout


def test_a_wrong_result_is_caught(program):
    result = run(program, "--plant", "result")
    assert result.returncode == 1 and "WRONG" in result.stdout


@pytest.mark.parametrize("edge", ["end", "begin"])
def test_parity_cases_read_nothing_beside_their_inputs(edge):
    result = run(sys.executable, "-m", "tests.parity_process", "--guard", edge)
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(re.findall(r"[1-9]\d* parity cases right", result.stdout)) >= len(ISAS)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_parity_case_that_leaves_its_input_is_caught(mistake):
    edge = mistake.split()[1]
    result = run(sys.executable, "-m", "tests.parity_process", "--guard", edge, "--plant", mistake)
    assert result.returncode == -signal.SIGSEGV and "Segmentation fault" in result.stderr
