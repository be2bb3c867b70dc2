"""The ledger counts calls, each once; which way a kernel went is counted beside them."""

from __future__ import annotations

import numpy as np
import pytest

import fusionkit as fk
from fusionkit.parallel.parity import run_ranks
from tests.core import toy

X, WEIGHT = np.ones((2, 64), np.float32), np.ones(64, np.float32)


def test_the_total_is_the_number_of_calls(prefer):
    prefer(toy.backend(device_types=("cpu",), name="a_toy", dtypes=("float16",)))
    op = fk.Op("fusion_rms_norm")
    for _ in range(3):
        op(X, WEIGHT)  # falls back, and is remembered
    op(X.astype(np.float16), WEIGHT)
    op.vjp(X, WEIGHT, grad_outputs=X)
    with fk.use_backend("a_toy"), pytest.raises(fk.NoBackendError):
        op(X, WEIGHT)
    assert sum(fk.ledger().values()) == 6


def test_a_collective_that_runs_serially_is_one_call():
    x, weight = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
    run_ranks(2, lambda rank, group: fk.all_gather_matmul(x, weight, group=group))
    assert dict(fk.ledger()) == {("all_gather_matmul", "cpu", "chosen"): 2}
    ((op, backend, way), count) = next(iter(fk.ledger().ways().items()))
    assert (op, backend, count) == ("all_gather_matmul", "cpu", 2) and way.startswith("serial: ")
    assert "2  all_gather_matmul  cpu  serial: " in str(fk.ledger())


def test_reset_forgets_ways_too():
    fk.ledger().way("op", "toy", "the long way").add()
    assert fk.ledger().ways() == {("op", "toy", "the long way"): 1} and not fk.ledger()
    fk.ledger().reset()
    assert not fk.ledger().ways() and "way" not in str(fk.ledger())
