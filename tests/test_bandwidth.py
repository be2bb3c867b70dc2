"""What benchmarks of the CPU backend stand on: the bandwidth ceiling, empty caches, results in memory made before."""

from __future__ import annotations

import numpy as np
import pytest
from fusionkit_backends.cpu import runtime


def aligned(num_bytes):
    memory = np.zeros(num_bytes + 64, np.bool_)
    start = -memory.ctypes.data % 64
    return memory[start : start + num_bytes]


@pytest.mark.parametrize("isa", runtime.native().available_isas())
@pytest.mark.parametrize("non_temporal", [False, True], ids=["ordinary", "non_temporal"])
@pytest.mark.parametrize("sizes", [(0, 65), (1, 1), (63, 129), (4097, 0), (65536, 65536), (300_001, 70_003)], ids=str)
def test_stream_writes_every_byte_of_its_target_and_no_other(native, isa, non_temporal, sizes):
    native.set_isa(isa)
    native.set_num_threads(2)
    source, memory = np.ones(sizes[0], np.bool_), aligned(sizes[1] + 64)
    native.stream(source, memory[: sizes[1]], non_temporal)
    assert memory[: sizes[1]].all() and not memory[sizes[1] :].any()


def test_stream_says_what_it_asks_for(native):
    memory = aligned(256)
    with pytest.raises(ValueError, match="stream: target must be aligned to 64 bytes, got 1 bytes past"):
        native.stream(memory, memory[1:], True)
    with pytest.raises(ValueError, match="stream: source must be contiguous, got"):
        native.stream(memory[::2], memory, False)


def test_results_come_from_the_arena_that_is_entered(native):
    gate = np.linspace(-3, 3, 1000, dtype=np.float32)
    want = native.swiglu(gate, gate)
    arena = native.ResultArena(2 * 4032)
    with arena:
        first, second = native.swiglu(gate, gate), native.swiglu(gate, -gate)
    outside = native.swiglu(gate, gate)
    with arena:
        again = native.swiglu(gate, gate)
    assert first.ctypes.data % 64 == 0 and second.ctypes.data == first.ctypes.data + 4032
    assert again.ctypes.data == first.ctypes.data and not np.shares_memory(outside, first)
    del arena
    np.testing.assert_array_equal(first, want)  # an array keeps the memory
    np.testing.assert_array_equal(second, -want)


def test_arena_that_is_too_small_says_how_large_it_must_be(native):
    x = np.ones(100, np.float32)
    with native.ResultArena(1000) as arena:
        native.swiglu(x, x)
        native.swiglu(x, x)
        with pytest.raises(RuntimeError, match="num_bytes must be at least 1344 for the results so far, got 1000"):
            native.swiglu(x, x)
        with pytest.raises(RuntimeError, match="entered already"), arena:
            pass
    native.swiglu(x, x)  # outside again
