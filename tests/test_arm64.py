"""The kernel library for 64-bit Arm, cross-compiled and run by an emulator; it holds only the portable kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import kernel_program
from tests.kernel_program import ARM64

SYSROOT = Path("/usr/aarch64-linux-gnu")
PACKAGES = {
    ARM64.compiler[0]: "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-objdump": "binutils-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
}

missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"missing: {' '.join(missing)} (apt-get install)"),
    pytest.mark.xdist_group("arm64"),
]


@pytest.fixture(scope="module")
def program():
    return kernel_program.build_program(ARM64)


def emulate(program, *arguments):
    command = ["qemu-aarch64", "-L", str(SYSROOT), str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_public_function_agrees_with_plain_loops(program):
    """What the portable kernels touch before a tensor is a matter of their source: test_memory_safety.py runs it here,
    on vectors of the same four lanes."""
    result = emulate(program, "--edge", "end")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"portable: \d+ cases, (\d+) results, 0 wrong", result.stdout)[1]) > 1000


@pytest.mark.parametrize("mistake", ["result", "read end bfloat16", "write begin float16"])
def test_mistakes_are_caught(program, mistake):
    assert emulate(program, "--plant", mistake).returncode == 1


@pytest.mark.parametrize("kernel", ["blocked_product", "flash_attention", "norm", "swiglu", "unpacked_product"])
def test_vectors_are_multiplied_and_added_by_one_instruction(program, kernel):
    """fmla on four floats: GCC turns the portable vector type into Advanced SIMD."""
    (made,) = program.parent.rglob(f"kernels/portable/{kernel}.o")
    code = subprocess.run(["aarch64-linux-gnu-objdump", "-d", str(made)], capture_output=True, text=True, check=True)
    assert len(re.findall(r"\bfmla\s+v\d+\.4s", code.stdout)) >= 20
