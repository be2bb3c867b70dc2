"""Gradients of the collective ops on Paddle tensors: those that are wanted, and no others."""

from __future__ import annotations

import gc

import numpy as np
import paddle
import pytest

import fusionkit as fk
from fusionkit.parallel import Communicator, unique_id
from fusionkit.parallel.parity import run_ranks
from tests.op_names import COLLECTIVE_OPS


def leaf(shape, wanted):
    tensor = paddle.ones(shape)
    tensor.stop_gradient = not wanted
    return tensor


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", COLLECTIVE_OPS)
@pytest.mark.parametrize("wants_dx, wants_dweight", [(True, False), (False, True), (False, False)])
def test_an_input_that_is_frozen_gets_none(name, backend, wants_dx, wants_dweight):
    def run(rank, communicator):
        x, weight = leaf([4, 8], wants_dx), leaf([8, 3], wants_dweight)
        with fk.use_backend(backend):
            y = getattr(fk, name)(x, weight, group=communicator)
        if wants_dx or wants_dweight:
            y.sum().backward()
        return y.stop_gradient, x.grad is not None, weight.grad is not None

    assert run_ranks(2, run) == [(not (wants_dx or wants_dweight), wants_dx, wants_dweight)] * 2


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("save_gathered", [True, False])
def test_the_gathered_rows_are_differentiable_alone_and_with_the_product(backend, save_gathered):
    """d(sum of gathered) counts each row once on each of 2 ranks; d(sum of y) adds 3 columns of ones on each."""

    def run(rank, communicator):
        results = []
        for with_product in (False, True):
            x, weight = leaf([4, 8], True), leaf([8, 3], True)
            with fk.use_backend(backend):
                y, gathered = fk.all_gather_matmul(
                    x, weight, group=communicator, return_gathered=True, save_gathered=save_gathered
                )
            (gathered.sum() + y.sum() if with_product else gathered.sum()).backward()
            results.append((np.unique(x.grad.numpy()), None if weight.grad is None else np.unique(weight.grad.numpy())))
        return results

    for (alone, _), (both, dweight) in run_ranks(2, run):
        assert alone == [2] and both == [2 + 2 * 3] and dweight == [2 * 4]


def test_under_auto_cast_the_products_are_low_and_a_master_weights_gradient_is_not():
    """One rank: Paddle's mixed precision is the process's, and ranks that are threads would leave it switched on."""
    weight = leaf([8, 3], True)
    with Communicator(unique_id(), 0, 1) as alone:
        with paddle.amp.auto_cast(dtype="bfloat16", level="O1"):
            y = fk.all_gather_matmul(leaf([4, 8], False), weight, group=alone)
        y.astype("float32").sum().backward()
    assert (y.dtype, weight.grad.dtype) == (paddle.bfloat16, paddle.float32)


@pytest.mark.parametrize("name", COLLECTIVE_OPS)
def test_a_forward_pass_without_a_backward_pass_keeps_no_memory(name):
    def allocated():
        gc.collect()
        return paddle.base.core.host_memory_stat_current_value("Allocated", 0)

    x, weight = leaf([64, 256], True), leaf([256, 3], True)
    with Communicator(unique_id(), 0, 1) as alone:
        getattr(fk, name)(x, weight, group=alone)
        before = allocated()
        for _ in range(4):
            getattr(fk, name)(x, weight, group=alone)
        assert allocated() - before < x.size * 4
