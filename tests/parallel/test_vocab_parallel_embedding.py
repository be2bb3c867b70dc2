"""VocabParallelEmbedding, ranks as threads, beside NumPy's lookup of the whole weight."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.distributed import fleet

from fusionkit.parallel import VocabParallelEmbedding
from fusionkit.parallel.parity import run_ranks
from fusionkit.parallel.parts import own_part, part_sizes

VOCAB, HIDDEN = 17, 6
WEIGHT = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype("f")
IDS = np.array([[0, 16], [8, 9], [5, 6], [12, 12], [11, 0], [4, 13]])  # the ends of each of two, three and four ranks
DY = np.random.default_rng(1).standard_normal((*IDS.shape, HIDDEN)).astype("f")


def exact_gradient():
    gradient = np.zeros((VOCAB, HIDDEN))
    np.add.at(gradient, IDS, DY.astype("float64"))
    return gradient


@pytest.mark.parametrize("scatters", [False, True], ids=["replicated", "sequence"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_rows_of_all_ranks_are_those_of_the_whole_weight(world_size, scatters):
    def run(rank, communicator):
        layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=communicator, reduce_scatter_embeddings=scatters)
        own = np.array_split(np.arange(VOCAB), world_size)[rank]
        assert layer.weight.shape == [len(own), HIDDEN] and layer.vocab_start_index == own[0]
        layer.weight.set_value(WEIGHT[own])
        y = layer(paddle.to_tensor(IDS))
        y.backward(paddle.to_tensor(np.array_split(DY, world_size)[rank] if scatters else DY))
        return y.numpy(), layer.weight.grad.numpy()

    results, gradients = zip(*run_ranks(world_size, run), strict=True)
    for result in [np.concatenate(results)] if scatters else results:
        np.testing.assert_array_equal(result, WEIGHT[IDS])  # sums of zeros and one row are exact
    np.testing.assert_allclose(np.concatenate(gradients), exact_gradient(), rtol=1e-6)


@pytest.mark.parametrize("scatters", [False, True], ids=["replicated", "sequence"])
def test_rows_are_rounded_once_and_their_gradient_is_the_weight_s(scatters):
    def run(rank, communicator):
        how = {"reduce_scatter_embeddings": scatters, "output_dtype": "bfloat16"}
        layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=communicator, **how)
        layer.weight.set_value(WEIGHT[own_part(VOCAB, rank, 2)])
        y = layer(paddle.to_tensor(IDS))
        y.sum().backward()
        return y.dtype, y.cast("float32").numpy(), layer.weight.grad.dtype, layer.weight.grad.numpy()

    results = run_ranks(2, run)
    assert all(each[0] == paddle.bfloat16 and each[2] == paddle.float32 for each in results)
    rounded = paddle.to_tensor(WEIGHT).cast("bfloat16").cast("float32").numpy()[IDS]
    whole = np.concatenate([each[1] for each in results]) if scatters else results[0][1]
    np.testing.assert_array_equal(whole, rounded)
    counts = np.bincount(IDS.ravel(), minlength=VOCAB)
    np.testing.assert_array_equal(np.concatenate([each[3] for each in results])[:, 0], counts)


def test_a_number_that_is_not_finite_stays_in_its_own_row():
    def run(rank, communicator):
        layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=communicator)
        weight = WEIGHT.copy()
        weight[[0, 9]] = np.nan  # the first of each rank
        layer.weight.set_value(weight[own_part(VOCAB, rank, 2)])
        return np.isnan(layer(paddle.to_tensor([1, 9, 10])).numpy()).any(-1).tolist()

    assert run_ranks(2, run) == [[False, True, False]] * 2


def test_the_marks_and_the_constructor_are_fleet_s():
    layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=SimpleNamespace(rank=1, world_size=2))
    assert isinstance(layer, fleet.meta_parallel.VocabParallelEmbedding)
    assert list(layer.state_dict()) == ["weight"] and layer.weight.shape == [8, HIDDEN]
    assert layer.weight.is_distributed and layer.weight.split_axis == 0
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(each).parameters.values() if p.kind != p.KEYWORD_ONLY]
        for each in (VocabParallelEmbedding, fleet.meta_parallel.VocabParallelEmbedding)
    )
    assert ours == theirs


def test_a_group_of_one_rank_is_a_plain_embedding():
    layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=SimpleNamespace(rank=-1, nranks=1, world_size=-1))
    layer.weight.set_value(WEIGHT)
    np.testing.assert_array_equal(layer(paddle.to_tensor(IDS)).numpy(), WEIGHT[IDS])
    assert not layer.weight.is_distributed


def test_what_cannot_be_is_refused():
    two = SimpleNamespace(rank=0, world_size=2)
    with pytest.raises(ValueError, match="num_embeddings must be at least the group's 2 ranks, got 1"):
        VocabParallelEmbedding(1, HIDDEN, mp_group=two)
    layer = VocabParallelEmbedding(VOCAB, HIDDEN, mp_group=two, reduce_scatter_embeddings=True)
    with pytest.raises(ValueError, match="x's first axis must be a multiple of the group's 2 ranks, got 3"):
        layer(paddle.to_tensor([1, 2, 3]))
    for outside in (-1, VOCAB):
        with pytest.raises(ValueError, match=rf"x must be in \[0, {VOCAB}\), got {outside}"):
            layer(paddle.to_tensor([1, outside]))


@pytest.mark.parametrize("size, world_size", [(32000, 8), (17, 4), (7, 7), (5, 8), (0, 3)])
def test_parts_are_those_of_array_split(size, world_size):
    everything = np.arange(size)
    expected = np.array_split(everything, world_size)
    for rank, part in enumerate(expected):
        np.testing.assert_array_equal(everything[own_part(size, rank, world_size)], part)
    assert part_sizes(size, world_size) == [len(part) for part in expected]
