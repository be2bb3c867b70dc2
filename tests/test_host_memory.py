"""The neutral ops refuse every tensor that is not in host memory, and never touch it.

No device is needed: a small library makes tensors on the place "toy:0" over pages that fault when they are read.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
from fusionkit_backends.cpu import paddle_ops

from fusionkit.frameworks import custom_device
from native import build
from tests.op_names import NEUTRAL_OPS

SOURCES = Path(__file__).parents[1] / "backends/cpu/csrc/paddle"
OPS = sorted(
    op for path in SOURCES.glob("*.cc") for op in re.findall(r"PD_BUILD_OP\(fusionkit_(\w+)\)", path.read_text())
)


@pytest.fixture(scope="module")
def device_tensor(tmp_path_factory):
    paddle = build.find_paddle()
    library = tmp_path_factory.mktemp("native") / "device_tensor.so"
    source = Path(__file__).parent / "native/device_tensor.cc"
    flags = ["-std=c++17", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=1", *build.paddle_flags(*paddle)]
    link = [f"-L{paddle[0] / 'base'}", "-Wl,--no-as-needed", "-l:libpaddle.so"]
    command = [*build.compiler(), *flags, str(source), "-o", str(library), *link]
    subprocess.run(command, check=True)
    paddle_ops.load()
    return ctypes.CDLL(str(library))


def test_every_kernel_for_paddle_has_its_neutral_op():
    """By its name, which exported programs hold."""
    paddle_ops.load()
    missing = [op for op in NEUTRAL_OPS if custom_device.argument_counts(f"fusionkit_{op}") is None]
    assert not missing, f"Register fusionkit_{missing[0]} in backends/cpu/csrc/paddle/{missing[0]}.cc"
    assert set(NEUTRAL_OPS) <= set(OPS)


@pytest.mark.xdist_group("device tensor")
@pytest.mark.parametrize("op", OPS)
def test_tensor_that_is_not_in_host_memory_is_refused(op, device_tensor):
    name = f"fusionkit_{op}".encode()
    count = device_tensor.num_inputs(name)
    assert count >= 1
    for on_device in range(count):
        text = ctypes.create_string_buffer(4096)
        device_tensor.run_with_device_input(name, on_device, text, ctypes.c_size_t(len(text)))
        said = text.value.decode()
        assert re.search(r"must be in host memory, got Place\(toy:0\)", said) and "pass" in said, said
