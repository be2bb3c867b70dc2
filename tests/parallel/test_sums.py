"""Sums of tensors that are under way while their ranks go on, and values that one rank gives to all."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from fusionkit.parallel import collectives
from fusionkit.parallel.parity import run_ranks

RANKS = 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_under_way_come_to_all_or_to_their_root(dtype):
    """Several at once, to every root; small integers are exact in both dtypes."""
    shapes = [(5,), (70000,), (3, 7), (1,)]
    roots = [None, 0, 1, 2]

    def one(rank, group):
        values = [paddle.full(shape, 2**number + rank, dtype) for number, shape in enumerate(shapes)]
        on_their_way = [collectives.start_sum(value, group, root) for root, value in zip(roots, values, strict=True)]
        found = [each.wait() for each in on_their_way]
        assert all(each.is_completed() for each in on_their_way)
        return [None if each is None else each.astype("float32").numpy() for each in found]

    for rank, found in enumerate(run_ranks(RANKS, one)):
        for number, (root, total) in enumerate(zip(roots, found, strict=True)):
            assert (total is None) == (root not in (None, rank))
            if total is not None:
                np.testing.assert_array_equal(total, np.full(shapes[number], 3 * 2**number + 3))


def test_a_root_fills_the_tensors_of_all():
    def one(rank, group):
        tensors = [paddle.full([4, 1000], float(rank)) for _ in range(RANKS)]
        for work in [collectives.start_broadcast(tensor, root, group) for root, tensor in enumerate(tensors)]:
            work.wait()
        return [np.unique(tensor.numpy()).tolist() for tensor in tensors]

    assert run_ranks(RANKS, one) == [[[0.0], [1.0], [2.0]]] * RANKS
