"""The cpu backend's collective ops while they overlap: right, bit-equal to unfused ones, and chosen where they pay."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from fusionkit_backends.cpu import overlap, overlap_model, overlapped
from fusionkit_backends.cpu.overlap_model import Rates
from fusionkit_backends.cpu.packed_operand import PackedOperand
from fusionkit_backends.cpu.serial import SERIAL

import fusionkit as fk
from fusionkit import parity, settings
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.parallel import Communicator, CommunicatorError, chunks, unique_id
from fusionkit.parallel.parity import run_ranks
from tests.op_names import COLLECTIVE_OPS

SLOW_LINK = Rates(per_weight=0, per_row=1e-9, latency=1e-5, per_byte=1e-8, busy=0)


def cases():
    for name in COLLECTIVE_OPS:
        for case in fk.Op(name).spec.cases:
            for dtype in ("float32", "bfloat16"):
                yield pytest.param(fk.Op(name), case, dtype, id=f"{name}-{dtype}-{case.name}")


@pytest.fixture
def many_chunks(monkeypatch):
    """Every call overlaps, in as many chunks as it has rows for."""
    monkeypatch.setattr(overlap, "forced", lambda: True)
    monkeypatch.setattr(overlap_model, "rates", lambda communicator, dtype: SLOW_LINK)
    for name, least in (("MIN_ROWS", 2), ("MIN_BYTES", 1), ("ALIGNMENT", 1)):
        monkeypatch.setattr(chunks, name, least)


@pytest.mark.parametrize("op, case, dtype", list(cases()))
def test_overlapped_ops_agree_with_float64(op, case, dtype, many_chunks, parity_of):
    parity.check(op, case, dtype, "cpu", "numpy")
    parity_of("cpu (overlapped)", "numpy")


@pytest.mark.parametrize("k, n", [(0, 3), (3, 0)])
@pytest.mark.parametrize("rows", [4, 128])
@pytest.mark.parametrize("name", COLLECTIVE_OPS)
def test_a_weight_without_elements_gives_zeros_or_nothing(name, rows, k, n):
    """And there is nothing to measure, to overlap or to divide by."""

    def run(rank, communicator):
        x, weight, op = np.ones((rows, k), "f"), np.ones((k, n), "f"), getattr(fk, name)
        op.explain(x, weight, group=communicator)
        y = op(x, weight, group=communicator)
        gradients = op.vjp(x, weight, group=communicator, grad_outputs=np.ones_like(y))
        return y, gradients["x"], gradients["weight"]

    y_rows = {"all_gather_matmul": 2 * rows, "matmul_reduce_scatter": rows // 2, "matmul_all_reduce": rows}[name]
    for results in run_ranks(2, run):
        assert [result.shape for result in results] == [(y_rows, n), (rows, k), (k, n)]
        assert not any(result.any() for result in results)


@pytest.mark.parametrize("how", [overlap.overlapped, overlap.serially])
def test_a_strided_gradient_of_the_gathered_rows(how):
    def run(rank, communicator):
        x, weight, dy, dgathered = (np.ones(shape, "f") for shape in ((4, 6), (6, 3), (8, 3), (8, 12)))
        with how():
            vjp = fk.all_gather_matmul.vjp
            gradients = vjp(x, weight, group=communicator, return_gathered=True, grad_outputs=(dy, dgathered[:, ::2]))
        return np.unique(gradients["x"])

    assert run_ranks(2, run) == [2 * (3 + 1)] * 2


def test_many_chunks_are_many(many_chunks):
    """Or the test above would say nothing."""
    with_record = []

    def run(rank, communicator):
        with overlap.record() as events:
            fk.all_gather_matmul(np.ones((17, 33), "f"), np.ones((33, 15), "f"), group=communicator)
        with_record.append([event for event in events if event.lane == "wait"])

    run_ranks(4, run)
    assert len({len(waits) for waits in with_record}) == 1 and len(with_record[0]) >= 3 * 4


def shards(name, world_size, rows, k, n, dtype, seed=0):
    """A rank's x and weight, and the gradient of its result."""

    def of_rank(rank):
        rng = np.random.default_rng([seed, rank])
        out_rows = {"all_gather_matmul": rows * world_size, "matmul_reduce_scatter": rows, "matmul_all_reduce": rows}
        x_rows = rows * world_size if name == "matmul_reduce_scatter" else rows
        shapes = (x_rows, k), (k, n), (out_rows[name], n)
        return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]

    return of_rank


def forward_and_backward(name, of_rank, how):
    def run(rank, communicator):
        x, weight, dy = of_rank(rank)
        op = getattr(fk, name)
        with how():
            y = op(x, weight, group=communicator)
            gradients = op.vjp(x, weight, group=communicator, grad_outputs=dy)
        return y, gradients["x"], gradients["weight"]

    return run


def bits(results):
    return [[np.ascontiguousarray(array).view(np.uint8).tobytes() for array in result] for result in results]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COLLECTIVE_OPS)
@pytest.mark.parametrize("world_size, rows, k, n", [(2, 256, 512, 384), (3, 197, 1000, 100), (4, 130, 257, 129)])
def test_overlapped_and_serial_give_the_same_bits(name, world_size, rows, k, n, dtype, monkeypatch):
    """Of results and of gradients of x; the weight's gradient is summed shard by shard where both products wait."""
    monkeypatch.setattr(overlap_model, "rates", lambda communicator, dtype: SLOW_LINK)
    monkeypatch.setattr(chunks, "MIN_BYTES", 1)
    of_rank = shards(name, world_size, rows, k, n, dtype)
    fused = run_ranks(world_size, forward_and_backward(name, of_rank, overlap.overlapped))
    serial = run_ranks(world_size, forward_and_backward(name, of_rank, overlap.serially))
    for got, want in zip(fused, serial, strict=True):
        for place in (0, 1) if name == "matmul_reduce_scatter" else (0, 1, 2):
            np.testing.assert_array_equal(got[place].view(np.uint8), want[place].view(np.uint8))


@pytest.mark.parametrize("name", COLLECTIVE_OPS)
def test_1000_runs_give_the_same_bits_under_delays(name, many_chunks, monkeypatch):
    """Ranks sleep before products and before they look at what arrived, each for random times."""
    delays = np.random.default_rng(5)
    multiply, await_work = PackedOperand.multiply, overlapped.await_work

    def delayed(function):
        def run(*args):
            if (seconds := delays.uniform(-1e-3, 3e-4)) > 0:
                time.sleep(seconds)
            return function(*args)

        return run

    monkeypatch.setattr(PackedOperand, "multiply", delayed(multiply))
    monkeypatch.setattr(overlapped, "await_work", delayed(await_work))
    once = forward_and_backward(name, shards(name, 2, 8, 24, 16, "bfloat16"), overlap.overlapped)

    def run(rank, communicator):
        first = bits([once(rank, communicator)])
        return sum(bits([once(rank, communicator)]) == first for _ in range(1000))

    assert run_ranks(2, run) == [1000, 1000]


def test_few_rows_run_serially_and_it_shows():
    x, weight = np.ones((4, 8), "f"), np.ones((8, 3), "f")
    fk.ledger().reset()

    def run(rank, communicator):
        fk.all_gather_matmul(x, weight, group=communicator)
        return str(fk.all_gather_matmul.explain(x, weight, group=communicator))

    for text in run_ranks(2, run):
        assert "-> cpu: chosen" in text and SERIAL in text
    assert fk.ledger().ways()["all_gather_matmul", "cpu", SERIAL] == 2


def test_a_slow_link_and_many_rows_overlap(monkeypatch):
    monkeypatch.setattr(overlap_model, "rates", lambda communicator, dtype: SLOW_LINK)
    monkeypatch.setattr(overlap_model, "known_rates", lambda communicator, dtype: SLOW_LINK)
    x, weight = np.ones((256, 1024), "f"), np.ones((1024, 1024), "f")
    fk.ledger().reset()

    def run(rank, communicator):
        with overlap.record() as events:
            fk.matmul_all_reduce(x, weight, group=communicator)
        assert SERIAL not in str(fk.matmul_all_reduce.explain(x, weight, group=communicator))
        return sum(event.lane == "wait" for event in events)

    assert min(run_ranks(2, run)) > 1
    assert ("matmul_all_reduce", "cpu", SERIAL) not in fk.ledger().ways()


@pytest.mark.parametrize("name", COLLECTIVE_OPS)
def test_strict_raises_where_an_op_would_run_serially(name, monkeypatch):
    strict = replace(settings.current(), values={"FUSIONKIT_STRICT": "1"})
    monkeypatch.setattr(settings, "current", lambda: strict)
    with Communicator(unique_id(), 0, 1) as alone:  # there is nothing to overlap
        getattr(fk, name)(np.ones((4, 8), "f"), np.ones((8, 3), "f"), group=alone)

    def run(rank, communicator):
        getattr(fk, name)(np.ones((4, 8), "f"), np.ones((8, 3), "f"), group=communicator)

    with pytest.raises(fk.NoBackendError, match=rf"{name}: . rows a rank are fewer .*FUSIONKIT_STRICT=1 forbids"):
        run_ranks(2, run)


def test_a_deferred_sum_hides_under_what_comes_before_wait(many_chunks):
    def run(rank, communicator):
        x, weight = np.full((32, 8), rank + 1, "f"), np.ones((8, 4), "f")
        first = fk.matmul_all_reduce(x, weight, group=communicator, defer=True)
        second = fk.matmul_all_reduce(2 * x, weight, group=communicator, defer=True)
        return first.wait()[0, 0], second.wait()[0, 0]

    assert run_ranks(3, run) == [(48, 96)] * 3


@pytest.mark.parametrize("name", COLLECTIVE_OPS)
@pytest.mark.parametrize("what", ["rows", "in_features", "dtype", "op"])
def test_a_rank_that_calls_something_else_is_named_with_its_shapes(name, what, many_chunks):
    def run(rank, communicator):
        odd = rank == 1
        shape = [6 if odd and what == "rows" else 12, 10 if odd and what == "in_features" else 8]
        dtype = "float16" if odd and what == "dtype" else "float32"
        others = {"all_gather_matmul": "matmul_all_reduce"}.get(name, "all_gather_matmul")
        op = getattr(fk, others if odd and what == "op" else name)
        op(np.ones(shape, dtype), np.ones((shape[1], 8), dtype), group=communicator)

    began = time.monotonic()
    with pytest.raises(CommunicatorError, match=r"all ranks must make the same call, got .* on rank . and .* on rank"):
        run_ranks(3, run)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("rows", (1, 16, 63, 64, 100, 197, 1024, 2049))
@pytest.mark.parametrize("growth", (1.0, 1.1, 1.7, 3.0))
@pytest.mark.parametrize("exposed", (64, 100, 512))
def test_parts_cover_the_rows_in_order_and_the_exposed_one_is_the_smallest(rows, growth, exposed):
    growing, shrinking = (parts(rows, exposed, growth) for parts in (chunks.growing_parts, chunks.shrinking_parts))
    for parts in (growing, shrinking):
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in growing]
    assert sizes[::-1] == [part.stop - part.start for part in shrinking]
    assert sizes[0] >= min(rows, exposed)
    assert all(size >= min(rows, exposed) - chunks.ALIGNMENT for size in sizes)
    if rows >= 2 * exposed * growth**2:
        assert len(sizes) > 1 and sizes[0] <= 2 * exposed * growth


@pytest.mark.parametrize("c", (0.05, 0.3, 0.6, 0.86, 0.99, 1.5))
def test_the_exposed_share_is_within_the_rule(c):
    count = chunks.num_chunks(c, 2, chunks.most_chunks(4096, 10240))
    assert 1 / (2 * count) <= max(min(0.05 * c, 1 - c), 1 - 2 * c, chunks.MIN_ROWS / 4096)


def test_the_model_prefers_overlap_where_it_pays_and_not_where_it_does_not():
    few = overlap_model.gather(SLOW_LINK, 64, (512, 16), 2, 2)
    many = overlap_model.gather(SLOW_LINK, 4096, (5120, 16), 2, 2)
    busy = overlap_model.gather(Rates(0, 1e-9, 1e-5, 1e-8, busy=1.0), 4096, (5120, 16), 2, 2)
    assert many.overlaps and not busy.overlaps
    assert many.overlapped < 0.75 * many.serial
    assert few.parts == [slice(0, 64)]
