"""What the emulated device itself does; run on it by test_runtime.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from tests.hanging import HANGING

DEVICE = "npu:0"
MIB = 2**20


@pytest.fixture(autouse=True)
def on_the_device():
    paddle.set_device(DEVICE)


def test_memory_is_accounted_to_the_byte():
    before = paddle.device.memory_allocated(DEVICE)
    tensor = paddle.zeros([3 * MIB], "float32")
    assert paddle.device.memory_allocated(DEVICE) - before == 12 * MIB
    assert paddle.device.max_memory_allocated(DEVICE) >= before + 12 * MIB
    del tensor
    assert paddle.device.memory_allocated(DEVICE) == before


def test_more_than_the_limit_is_an_error_that_names_sizes():
    with pytest.raises(MemoryError, match=r"Cannot allocate 5\.000000GB memory on npu:0, available memory is only"):
        paddle.zeros([5 * 256, MIB], "float32")


def test_memory_is_there_when_it_is_touched():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096  # pages

    before = resident()
    kept = paddle.empty([700, MIB], "float32")  # 2.7 GiB
    assert resident() - before < 100 * MIB
    assert kept.shape == [700, MIB]


def test_host_code_that_touches_a_tensor_is_a_segmentation_fault_that_names_its_op():
    code = f"import paddle, ctypes; paddle.set_device({DEVICE!r}); x = paddle.ones([4]) + 1; "
    touch = "ctypes.string_at(x.data_ptr() + 8, 4)"
    result = subprocess.run([sys.executable, "-c", code + touch], capture_output=True, text=True, timeout=HANGING)
    assert result.returncode == -11
    assert "emulated npu:0: host code touched device memory, 8 bytes into the 16 that " in result.stderr


def test_a_call_returns_before_it_has_run_and_a_copy_waits():
    a = paddle.ones([1500, 1500])
    paddle.device.synchronize(DEVICE)
    began = time.perf_counter()
    b = a
    for _ in range(12):
        b = a @ b * (1 / 1500)
    returned = time.perf_counter() - began
    assert float(b[0, 0]) == 1
    assert returned < (time.perf_counter() - began) / 2


def test_streams_do_not_wait_for_each_other_without_an_event():
    a = paddle.ones([1500, 1500])
    for waits in (True, False):
        source = paddle.zeros([4])
        paddle.device.synchronize(DEVICE)
        main, side = paddle.device.current_stream(DEVICE), paddle.device.Stream(DEVICE)
        b = a
        for _ in range(8):
            b = a @ b * (1 / 1500)
        source.add_(b[0, :4])
        if waits:
            side.wait_stream(main)
        with paddle.device.stream_guard(side):
            seen = source * 1
        paddle.device.synchronize(DEVICE)
        assert seen.numpy().tolist() == ([1.0] * 4 if waits else [0.0] * 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(dtype):
    random = np.random.default_rng(0)
    x, w = (paddle.to_tensor(random.standard_normal((64, 64)).astype("float32")).astype(dtype) for _ in range(2))
    # A product of two 16-bit numbers is exact in float32, so one rounding has one result.
    product = (x.astype("float64") * w.astype("float64")).astype("float32").astype(dtype)
    assert (x * w).dtype == getattr(paddle, dtype) and bool((x * w == product).all())
    # In a sum of 64 products float32's order shows: beside the largest, 2e-6 and half an epsilon of the output.
    exact = x.astype("float64") @ w.astype("float64")
    half_epsilon = {"bfloat16": 2.0**-9, "float16": 2.0**-12}[dtype] * 2
    assert float(((x @ w).astype("float64") - exact).abs().max() / exact.abs().max()) <= half_epsilon + 2e-6


def test_float32_rounds_to_float16_to_nearest_even():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 2.0**-25, 6e-8], "float32")
    assert np.array_equal(paddle.to_tensor(values).astype("float16").numpy(), values.astype("float16"))


def test_saving_the_generator_repeats_the_random_numbers():
    paddle.seed(3)
    state = paddle.get_rng_state(DEVICE)
    first = F.dropout(paddle.ones([1000]), 0.5).numpy()
    other = F.dropout(paddle.ones([1000]), 0.5).numpy()
    paddle.set_rng_state(state, DEVICE)
    assert np.array_equal(F.dropout(paddle.ones([1000]), 0.5).numpy(), first) and not np.array_equal(first, other)


def test_a_strided_view_is_read_and_written_where_it_lies():
    x = paddle.arange(24, dtype="float32").reshape([4, 6])
    x.T[1:3].add_(paddle.full([2, 4], 100.0))
    wanted = np.arange(24, dtype="float32").reshape(4, 6)
    wanted.T[1:3] += 100
    assert np.array_equal(x.numpy(), wanted)


def test_a_failing_kernel_is_an_error_with_its_name():
    code = f"import paddle; paddle.set_device({DEVICE!r}); x = paddle.ones([4, 4]); i = paddle.to_tensor([9]); "
    result = subprocess.run(
        [sys.executable, "-c", code + "paddle.nn.functional.embedding(i, x).numpy()"],
        capture_output=True,
        text=True,
        timeout=HANGING,
    )
    assert result.returncode == 1 and "emulated npu: embedding: " in result.stderr
