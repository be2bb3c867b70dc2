"""The parallel linear layers against one process's product, ranks as threads: outputs, gradients, marks, errors."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.distributed import fleet
from paddle.distributed.fleet.utils import sequence_parallel_utils

import fusionkit as fk
from fusionkit import parallel, policy
from fusionkit.nn import recompute
from fusionkit.parallel.parity import run_ranks
from fusionkit.parallel.sequence import gather_rows, scatter_rows
from tests.hanging import HANGING

COLUMN, ROW = "ColumnParallelLinear", "RowParallelLinear"
COLUMN_SEQUENCE, ROW_SEQUENCE = "ColumnSequenceParallelLinear", "RowSequenceParallelLinear"
FUSED = {
    COLUMN: "matmul_all_reduce",
    ROW: "matmul_all_reduce",
    COLUMN_SEQUENCE: "all_gather_matmul",
    ROW_SEQUENCE: "matmul_reduce_scatter",
}
SEQ_LEN, BATCH, INPUTS, OUTPUTS = 6, 2, 18, 12


@pytest.fixture(params=[True, False], ids=["mc2", "serial"])
def mc2(request, monkeypatch):
    """For every thread; `use_mc2` is for one."""
    monkeypatch.setattr(policy, "mc2", lambda: request.param)
    return request.param


def values(number, *shape):
    return np.random.default_rng(number).standard_normal(shape)


X, WEIGHT, BIAS = values(0, SEQ_LEN, BATCH, INPUTS), values(1, INPUTS, OUTPUTS), values(2, OUTPUTS)
DY = values(3, SEQ_LEN, BATCH, OUTPUTS)
EXACT = SimpleNamespace(
    y=X @ WEIGHT + BIAS,
    dx=DY @ WEIGHT.T,
    dweight=np.einsum("sbk,sbn->kn", X, DY),
    dbias=DY.sum((0, 1)),
)


def part(array, rank, world_size, axis):
    return np.split(array, world_size, axis)[rank]


def trained(layer, x, dy, dtype="float32"):
    """y and the gradients of one rank."""
    x = paddle.to_tensor(x.astype("float32")).cast(dtype)
    x.stop_gradient = False
    y = layer(x)
    y.backward(paddle.to_tensor(dy.astype("float32")).cast(dtype))
    found = {"y": y, "dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}
    return SimpleNamespace(**{name: value.cast("float32").numpy() for name, value in found.items()}, layer=layer)


def run(name, world_size, arguments, x_axis, y_axis, dtype="float32"):
    """One step on each rank; x and dy are sharded on these axes, or replicated."""
    weight_axis = 1 if name in (COLUMN, COLUMN_SEQUENCE) else 0

    def one(rank, communicator):
        layer = getattr(parallel, name)(INPUTS, OUTPUTS, has_bias=True, mp_group=communicator, **arguments)
        layer.weight.set_value(part(WEIGHT, rank, world_size, weight_axis).astype("float32"))
        bias = part(BIAS, rank, world_size, 0) if weight_axis else BIAS
        layer.bias.set_value(bias.astype("float32"))
        x, dy = (
            array if axis is None else part(array, rank, world_size, axis)
            for array, axis in ((X, x_axis), (DY, y_axis))
        )
        return trained(layer, x, dy, dtype)

    return run_ranks(world_size, one)


def whole(results, name, axis):
    parts = [getattr(each, name) for each in results]
    if axis is None:
        assert all(np.array_equal(each, parts[0]) for each in parts[1:])
        return parts[0]
    return np.concatenate(parts, axis)


def assert_close(got, exact, dtype="float32"):
    # Sums of 18 and 12 products of size one; bfloat16 rounds each rank's products and their sum.
    bound = {"float32": 64 * 2.0**-23, "bfloat16": 3 * 2.0**-8}[dtype]
    np.testing.assert_allclose(got, exact, rtol=0, atol=bound * np.abs(exact).max())


LAYOUTS = [
    (COLUMN, {"gather_output": False}, None, 2),
    (COLUMN, {"gather_output": True}, None, None),
    (COLUMN, {"gather_output": False, "fuse_matmul_bias": True}, None, 2),
    (ROW, {"input_is_parallel": True}, 2, None),
    (ROW, {"input_is_parallel": False}, None, None),
    (COLUMN_SEQUENCE, {"gather_output": False}, 0, 2),
    (COLUMN_SEQUENCE, {"gather_output": False, "fuse_matmul_bias": True}, 0, 2),
    (ROW_SEQUENCE, {"input_is_parallel": True}, 2, 0),
]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name, arguments, x_axis, y_axis", LAYOUTS)
def test_a_layer_is_one_process_s_product(mc2, name, arguments, x_axis, y_axis, world_size):
    fk.ledger().reset()
    results = run(name, world_size, arguments, x_axis, y_axis)
    assert (FUSED[name] in {op for op, _, _ in fk.ledger()}) == mc2
    assert_close(whole(results, "y", y_axis), EXACT.y)
    assert_close(whole(results, "dx", x_axis), EXACT.dx)
    column = name in (COLUMN, COLUMN_SEQUENCE)
    assert_close(whole(results, "dweight", 1 if column else 0), EXACT.dweight)
    if name == ROW_SEQUENCE:  # each rank has its own tokens' part, for fleet's hooks to sum
        assert_close(sum(each.dbias for each in results), EXACT.dbias)
    else:
        assert_close(whole(results, "dbias", 0 if column else None), EXACT.dbias)


@pytest.mark.parametrize("name, arguments, x_axis, y_axis", [LAYOUTS[0], LAYOUTS[3], LAYOUTS[5], LAYOUTS[7]])
def test_float32_weights_beside_bfloat16_activations(mc2, name, arguments, x_axis, y_axis):
    results = run(name, 2, arguments, x_axis, y_axis, "bfloat16")
    assert results[0].layer.weight.dtype == paddle.float32
    assert results[0].layer.weight.grad.dtype == results[0].layer.bias.grad.dtype == paddle.float32
    assert_close(whole(results, "y", y_axis), EXACT.y, "bfloat16")
    assert_close(whole(results, "dx", x_axis), EXACT.dx, "bfloat16")
    column = name in (COLUMN, COLUMN_SEQUENCE)
    assert_close(whole(results, "dweight", 1 if column else 0), EXACT.dweight, "bfloat16")


@pytest.mark.parametrize("name, arguments, x_axis, y_axis", LAYOUTS)
def test_a_layer_that_computes_again_has_the_same_gradients(mc2, monkeypatch, name, arguments, x_axis, y_axis):
    """Its input is the input of what computes again, whose gradient is summed over the ranks once."""
    expected = run(name, 2, arguments, x_axis, y_axis)
    plain = trained
    monkeypatch.setattr(sys.modules[__name__], "trained", lambda layer, *rest: plain(again(layer), *rest))
    for one, other in zip(run(name, 2, arguments, x_axis, y_axis), expected, strict=True):
        for value in ("y", "dx", "dweight", "dbias"):
            np.testing.assert_array_equal(getattr(one, value), getattr(other, value))


def again(layer):
    """The layer, of which nothing is kept."""

    def call(x):
        return recompute(layer, x * 1)  # what is in front has a graph

    call.weight, call.bias = layer.weight, layer.bias
    return call


@pytest.mark.parametrize("world_size", [2, 3])
def test_layers_of_one_input_each_sum_their_own_gradient(mc2, world_size):
    """As projections to queries, keys and values that are layers of their own, beside what is no layer."""

    def one(rank, communicator):
        x = paddle.to_tensor(X.astype("float32"))
        x.stop_gradient = False
        y = x + 0
        for _ in range(3):
            layer = parallel.ColumnParallelLinear(
                INPUTS, OUTPUTS, has_bias=False, mp_group=communicator, gather_output=False
            )
            layer.weight.set_value(part(WEIGHT, rank, world_size, 1).astype("float32"))
            layer(y).backward(paddle.to_tensor(part(DY, rank, world_size, 2).astype("float32")), retain_graph=True)
        y.backward(paddle.to_tensor(X.astype("float32")))
        return x.grad.numpy()

    for dx in run_ranks(world_size, one):
        assert_close(dx, 3 * EXACT.dx + X)


@pytest.mark.parametrize("shape", [(0, INPUTS), (2, 0, INPUTS), (INPUTS, 4)])
def test_a_column_layer_takes_inputs_of_no_tokens_and_of_other_strides(mc2, shape):
    def one(rank, communicator):
        layer = parallel.ColumnParallelLinear(INPUTS, OUTPUTS, None, False, gather_output=False, mp_group=communicator)
        x = paddle.ones(shape)
        x.stop_gradient = False
        y = layer(x.t() if shape[0] == INPUTS else x)
        y.backward()
        return y.shape[:-1], x.grad.shape

    rows = [4] if shape[0] == INPUTS else list(shape[:-1])
    assert run_ranks(2, one) == [(rows, list(shape))] * 2


def test_use_mc2_wins_over_the_setting():
    assert policy.mc2()
    with policy.use_mc2(False):
        assert not policy.mc2()
        with policy.use_mc2(True):
            assert policy.mc2()
        later = policy.captured()
    assert policy.mc2()
    with later:
        assert not policy.mc2()
    assert policy.mc2()


def test_gathering_again_changes_no_gradient():
    def one(rank, communicator):
        found = []
        for again in (False, True):
            layer = parallel.ColumnSequenceParallelLinear(
                INPUTS, OUTPUTS, has_bias=True, gather_output=False, mp_group=communicator
            )
            layer.recompute_allgather = again
            layer.weight.set_value(part(WEIGHT, rank, 2, 1).astype("float32"))
            found.append(trained(layer, part(X, rank, 2, 0), part(DY, rank, 2, 2)).dweight)
        return np.array_equal(*found)

    assert run_ranks(2, one) == [True, True]


@pytest.mark.parametrize("name, arguments, x_axis, y_axis", [LAYOUTS[5], LAYOUTS[7]])
def test_tokens_without_a_batch_axis(mc2, name, arguments, x_axis, y_axis):
    def one(rank, communicator):
        layer = getattr(parallel, name)(INPUTS, OUTPUTS, has_bias=False, mp_group=communicator, **arguments)
        rows = SEQ_LEN // (2 if name == COLUMN_SEQUENCE else 1)
        columns = INPUTS // (1 if name == COLUMN_SEQUENCE else 2)
        return layer(paddle.ones([rows, columns])).shape, layer(paddle.ones([rows, BATCH, columns])).shape

    flat, batched = run_ranks(2, one)[0]
    assert flat == [batched[0], batched[2]] and batched[1] == BATCH


def test_parameters_have_the_marks_and_names_of_fleet():
    def one(rank, communicator):
        made = {}
        for name, arguments, _, _ in (LAYOUTS[0], LAYOUTS[3], LAYOUTS[5], LAYOUTS[7]):
            layer = getattr(parallel, name)(INPUTS, OUTPUTS, has_bias=True, mp_group=communicator, **arguments)
            marks = [(getattr(p, "is_distributed", False), getattr(p, "split_axis", None)) for p in layer.parameters()]
            sequence = sequence_parallel_utils.is_sequence_parallel_parameter(layer.bias)
            made[name] = [list(layer.state_dict()), layer.weight.shape, layer.bias.shape, marks, sequence]
        return made

    for made in run_ranks(2, one):
        for name in (COLUMN, COLUMN_SEQUENCE):
            assert made[name] == [["weight", "bias"], [INPUTS, 6], [6], [(True, 1), (True, 0)], False]
        for name in (ROW, ROW_SEQUENCE):
            marks = [(True, 0), (False, None)]
            assert made[name] == [["weight", "bias"], [9, OUTPUTS], [OUTPUTS], marks, name == ROW_SEQUENCE]


@pytest.mark.parametrize("name", FUSED)
def test_constructors_are_fleet_s(name):
    theirs = getattr(sequence_parallel_utils if "Sequence" in name else fleet.meta_parallel, name)
    ours = inspect.signature(getattr(parallel, name))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in inspect.signature(theirs).parameters.values()
    ]
    assert issubclass(getattr(parallel, name), theirs)


def test_shards_of_a_new_weight_differ():
    """One after the other: Paddle's random numbers are the process's, and ranks are threads here."""

    def weight(rank):
        paddle.seed(7)
        group = SimpleNamespace(rank=rank, world_size=2)
        weight = parallel.ColumnParallelLinear(INPUTS, OUTPUTS, mp_group=group).weight.numpy()
        return weight, paddle.rand([1]).item()

    (first, after), (second, after_second) = weight(0), weight(1)
    assert not np.array_equal(first, second) and np.array_equal(first, weight(0)[0])
    assert after == after_second  # what is replicated is drawn alike on all ranks


def test_a_group_of_one_rank_is_a_plain_layer():
    """As Paddle makes it where a degree is 1: outside of it by rank and world_size."""
    group = SimpleNamespace(rank=-1, nranks=1, world_size=-1)
    for layer in (
        parallel.ColumnParallelLinear(INPUTS, OUTPUTS, has_bias=True, mp_group=group),
        parallel.RowParallelLinear(INPUTS, OUTPUTS, mp_group=group),
        parallel.RowSequenceParallelLinear(INPUTS, OUTPUTS, input_is_parallel=True, mp_group=group),
    ):
        layer.bias.set_value(BIAS.astype("float32"))
        x = paddle.to_tensor(X.astype("float32"))
        np.testing.assert_allclose(layer(x).numpy(), X @ layer.weight.numpy() + BIAS, rtol=0, atol=1e-5)
        assert not layer.weight.is_distributed and not layer.is_mp


TWO = SimpleNamespace(rank=0, world_size=2)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        (COLUMN, {"out_features": 11}, "out_features must be a multiple of the group's 2 ranks, got 11"),
        (ROW, {"in_features": 7}, "in_features must be a multiple of the group's 2 ranks, got 7"),
        (COLUMN_SEQUENCE, {}, "gather_output must be False, got True"),
        (ROW_SEQUENCE, {}, "input_is_parallel must be True, got False"),
        (COLUMN_SEQUENCE, {"mp_group": SimpleNamespace(rank=0, world_size=1)}, "mp_group must be of at least 2 ranks"),
        (ROW, {"mp_group": None}, "mp_group must be a group, got None; fleet has no topology yet. Call fleet.init"),
        (ROW, {"mp_group": SimpleNamespace(rank=-1, nranks=2)}, "mp_group must be None, a Paddle group that this rank"),
        (ROW, {"mp_group": 2}, "mp_group must be None, a Paddle group that this rank is in, or a Communicator, got 2"),
    ],
)
def test_what_cannot_be_is_refused(name, arguments, words):
    with pytest.raises((ValueError, TypeError)) as error:
        getattr(parallel, name)(**{"in_features": 8, "out_features": 12, "mp_group": TWO, **arguments})
    assert str(error.value).startswith(f"{name}: {words}")


def test_a_sequence_that_does_not_divide_is_refused():
    layer = parallel.RowSequenceParallelLinear(INPUTS, OUTPUTS, input_is_parallel=True, mp_group=TWO)
    with pytest.raises(ValueError, match="x's first axis must be a multiple of the group's 2 ranks, got 5"):
        layer(paddle.ones([5, BATCH, INPUTS // 2]))


def test_features_that_do_not_divide_are_refused_not_cut_off():
    layer = parallel.RowParallelLinear(8, OUTPUTS, mp_group=TWO)
    with pytest.raises(ValueError, match="x's last axis must be a multiple of the group's 2 ranks, got 9"):
        layer(paddle.ones([5, 9]))


def test_rows_are_scattered_and_gathered_with_the_gradients_of_replicated_ones():
    """What all ranks go on to compute alike counts once."""
    whole = values(4, 6, 3).astype("float32")

    def one(rank, communicator):
        x = paddle.to_tensor(whole, stop_gradient=False)
        own = scatter_rows(x, communicator)
        own.retain_grads()
        y = gather_rows(own * own, communicator)
        y.backward(paddle.to_tensor(whole))
        return own.numpy(), own.grad.numpy(), y.numpy(), x.grad.numpy()

    for rank, (own, down, y, dx) in enumerate(run_ranks(2, one)):
        np.testing.assert_array_equal(own, part(whole, rank, 2, 0))
        np.testing.assert_array_equal(down, part(2 * whole * whole, rank, 2, 0))
        np.testing.assert_array_equal(y, whole * whole)
        np.testing.assert_array_equal(dx, 2 * whole * whole)


def test_the_package_imports_no_framework_until_a_layer_is_asked_for():
    code = "import sys, fusionkit.parallel as p; assert 'paddle' not in sys.modules; p.RowParallelLinear; import paddle"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=HANGING).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'RowParalelLinear'"):
        parallel.RowParalelLinear  # noqa: B018
