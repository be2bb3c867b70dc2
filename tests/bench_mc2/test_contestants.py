"""The contestants are what they are called: products agree, chunks are the op's, collectives have its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from fusionkit_backends.cpu import benchmark_mc2 as device
from fusionkit_backends.cpu import overlap, overlap_model
from fusionkit_bench.mc2 import contestants
from fusionkit_bench.mc2.cases import OPS, Case, directions_of

CALLS = [(op, direction) for op in OPS for direction in directions_of(op)]
# 512 rows by 1024 x 1024 take 537 s and the 1 MiB of half of them 839: c is 1.6, and 0.8 beside two products.
RATES = overlap_model.Rates(per_weight=0.0, per_row=1e-6, latency=1e-5, per_byte=8e-4, busy=0.0)


class Group:
    """Of two ranks that nobody talks to; it says what it was asked for."""

    rank, world_size = 1, 2

    def __init__(self):
        self.asked = []

    def barrier(self):
        pass

    def all_reduce(self, array, op="sum"):
        self.asked.append(("all_reduce", 2 * array.nbytes // 2))
        return array

    def all_gather(self, array):
        self.asked.append(("all_gather", array.nbytes))

    def reduce_scatter(self, array):
        assert array.shape[0] == 2
        self.asked.append(("reduce_scatter", array.nbytes // 2))


def small(op, direction, dtype="float32"):
    return Case(op, direction, 2, 512, 1024, 1024, dtype)


@pytest.fixture(autouse=True)
def measured_before(monkeypatch):
    monkeypatch.setattr(overlap_model, "rates", lambda communicator, dtype: RATES)


@pytest.mark.parametrize(("op", "direction"), CALLS)
def test_the_collective_moves_the_bytes_of_the_op(op, direction):
    case, group = small(op, direction), Group()
    contestants.collective_of(case, contestants.arrays_of(case, 1), group)()
    ((name, num_bytes),) = group.asked
    assert num_bytes == case.bytes_sent
    gathers = (op == "all_gather_matmul") == (direction == "forward")
    assert name == ("all_reduce" if op == "matmul_all_reduce" else "all_gather" if gathers else "reduce_scatter")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_the_product_gives_it(direction, dtype):
    case = small("matmul_reduce_scatter", direction, dtype)
    arrays = contestants.arrays_of(case, 0)
    x, weight, dy = (each.astype(np.float64) for each in (arrays.whole_x, arrays.weight, arrays.whole_dy))
    wanted = [x @ weight] if direction == "forward" else [dy @ weight.T, x.T @ dy]
    calls = contestants.products(case, arrays, device)
    assert len(calls) >= 2
    for call in calls.values():
        result = call()
        for got, want in zip(result if isinstance(result, tuple) else (result,), wanted, strict=False):
            assert np.abs(got.astype(np.float64) - want).max() < (1e-5 if dtype == "float32" else 1e-2) * want.max()


@pytest.mark.parametrize(("op", "direction"), CALLS)
def test_the_chunks_are_the_ops_and_cover_every_row_once(op, direction):
    case = small(op, direction)
    group, arrays = Group(), contestants.arrays_of(case, 0)
    with overlap.record() as events:
        result = device.chunks(case, arrays.whole_x, arrays.weight, arrays.whole_dy, group)()
    products = [event for event in events if event.label == "product"]
    parts = device.parts_of(case, group)
    own = 0 if op == "matmul_all_reduce" else 1
    assert len(products) == own + len(parts) and device.num_chunks(case, group) >= len(parts) > 1
    x, weight = (arrays.whole_x, arrays.weight) if direction == "forward" else (arrays.whole_dy, arrays.weight.T)
    y = result if direction == "forward" else result[0]
    np.testing.assert_allclose(y, x @ weight, rtol=1e-3, atol=1e-2)


def test_the_baseline_is_the_fastest():
    spent = []
    slow, quick = lambda: [spent.append(number) for number in range(200_000)], lambda: None
    assert contestants.fastest({"slow": slow, "quick": quick}, Group()) == ("quick", quick)
