"""The communicator's calls against NumPy, on 1 to 8 processes."""

from __future__ import annotations

import numpy as np
import pytest

from fusionkit.parallel.native import DTYPES, REDUCE_OPS
from tests.parallel.ranks import SIZES, sample

WORLD_SIZES = (1, 2, 3, 4, 8)
GROUPS = [("memory", world_size) for world_size in WORLD_SIZES] + [("tcp", 2), ("tcp", 4), ("mixed", 3), ("mixed", 4)]
CASES = [
    (dtype, op)
    for dtype in DTYPES
    for op in REDUCE_OPS
    if not (dtype.kind == "c" and op in ("min", "max")) and not (dtype.kind == "b" and op == "average")
]


def expected(arrays: list[np.ndarray], op: str) -> np.ndarray:
    """In the order of ranks, in float32 for the 16-bit floats, in 64 bits for integers."""
    dtype = arrays[0].dtype
    wide = {"f": np.float32 if dtype.itemsize == 2 else dtype, "i": np.int64, "u": np.uint64, "V": np.float32}
    total = arrays[0].astype(wide.get(dtype.kind, dtype))
    for array in arrays[1:]:
        other = array.astype(total.dtype)
        if op in ("sum", "average"):
            total = total + other
        else:
            total = {"product": np.multiply, "min": np.minimum, "max": np.maximum}[op](total, other)
    if op == "average":
        exact = total.dtype.kind in "fc"
        total = total / total.dtype.type(len(arrays)) if exact else np.trunc(total / len(arrays))
    return total.astype(dtype)


# The arithmetic does not depend on the way that the bytes have come, and eight ranks take long.
FEW_CASES = [case for case in CASES if str(case[0]) in ("bool", "int16", "bfloat16", "float32", "complex128")][::3]


@pytest.mark.parametrize(("transport", "world_size"), GROUPS)
def test_reductions_equal_numpys_in_the_order_of_ranks(start, transport, world_size):
    cases = CASES if transport == "memory" and world_size < 8 else FEW_CASES
    names = [(str(dtype), op) for dtype, op in cases]
    results = start("all_reductions", world_size, transport=transport, cases=names).results()
    for result in results:
        assert not isinstance(result, Exception), result
    for number, (dtype, op) in enumerate(cases):
        for place, size in enumerate(SIZES):
            inputs = [sample(dtype, (world_size, size), rank) for rank in range(world_size)]
            total = expected([each[0] for each in inputs], op)
            # Complex products may be fused or not; all else is exact.
            same = np.testing.assert_allclose if dtype.kind == "c" else np.testing.assert_array_equal
            bound = {"rtol": 16 * np.finfo(dtype).eps} if dtype.kind == "c" else {}
            for rank in range(world_size):
                all_reduced, scattered, reduced = results[rank][number][3 * place : 3 * place + 3]
                same(all_reduced, total, **bound)
                same(scattered, expected([each[rank] for each in inputs], op), **bound)
                if rank == world_size - 1:
                    same(reduced, total, **bound)
                else:
                    assert reduced is None


@pytest.mark.parametrize(("transport", "world_size"), GROUPS)
def test_data_arrive_where_they_belong(start, transport, world_size):
    for passed in start("movements", world_size, transport=transport).results():
        assert len(passed) == 4 * len(DTYPES) * len(SIZES)
        assert all(passed)


def test_16_bit_floats_are_rounded_once(start):
    """Rounding after each sum gives another result, so the exact comparison would see it."""
    (first, *_) = start("all_reductions", 8, cases=[["bfloat16", "sum"]]).results()
    inputs = [sample(DTYPES[12], (8, SIZES[-1]), rank)[0] for rank in range(8)]
    stepwise = inputs[0]
    for each in inputs[1:]:
        stepwise = stepwise + each
    assert not np.array_equal(first[0][-3], stepwise)
    np.testing.assert_array_equal(first[0][-3], expected(inputs, "sum"))


@pytest.mark.parametrize("world_size", (3, 8))
def test_all_ranks_and_runs_get_the_same_bits_under_delays(start, world_size):
    runs = [start("digest", world_size, seed=seed, rounds=40).results() for seed in (1, 2)]
    assert len({each for run in runs for each in run}) == 1
    assert isinstance(runs[0][0], str)


@pytest.mark.parametrize(("transport", "world_size"), [("memory", 3), ("tcp", 3), ("mixed", 3)])
def test_a_thousand_small_reductions_have_the_same_bits_under_delays(start, transport, world_size):
    runs = [start("small", world_size, transport=transport, seed=seed, rounds=1000).results() for seed in (1, 2)]
    assert len({each for run in runs for each in run}) == 1
    assert isinstance(runs[0][0], str)


@pytest.mark.parametrize(("transport", "world_size"), [("memory", 2), ("memory", 8), ("tcp", 4), ("mixed", 4)])
def test_sends_of_a_group_wait_for_no_receive_in_front_of_them(start, transport, world_size):
    assert start("crossing", world_size, transport=transport).results() == [True] * world_size


@pytest.mark.parametrize("transport", ("memory", "tcp"))
def test_communicators_work_side_by_side(start, transport, tmp_path):
    from fusionkit.parallel import unique_id

    meetings = [unique_id().hex() if transport == "memory" else str(tmp_path / name) for name in ("first", "last")]
    results = start("many", 4, transport=transport, meetings=meetings).results()
    assert results == [[10, 6], [10, 6, 9], [10, 6, 9], [10, 9]]
