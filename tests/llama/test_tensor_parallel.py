"""The Llama divided over ranks against the whole one: losses, gradients, checkpoints of one layout read on another."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.config import LlamaConfig
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.optimizer import AdamW
from fusionkit import policy
from fusionkit.parallel.parity import run_ranks

STEPS = 3
FUSED = {"all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce"}
one_at_a_time = threading.Lock()  # Paddle builds lazy layers by replacing a function of the whole process


@pytest.fixture
def without_mc2(monkeypatch):
    monkeypatch.setattr(policy, "mc2", lambda: False)


def batch(step):
    random = np.random.default_rng(step)
    ids, labels = random.integers(0, 512, (2, 2, 33 + step % 2))
    labels[0, :5] = -100
    ends = np.full((2, 1, ids.shape[1], 1), ids.shape[1], np.int32)
    ends[0, 0, :10] = 10  # two documents in a row
    positions = np.tile(np.arange(ids.shape[1]), (2, 1))
    return map(paddle.to_tensor, (ids, labels, positions, ends))


class Run:
    """A model and its optimizer on one rank, from a folder or a checkpoint."""

    def __init__(self, folder, shards=ALONE, start=0, **arguments):
        with one_at_a_time:
            self.model = Llama.from_pretrained(folder, shards=shards, **arguments)
        self.mesh = Mesh(tensor=shards)
        self.optimizer = AdamW(self.model, self.mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        if start:
            self.optimizer.load(folder, training_state.load(folder).optimizer)
        self.shards, self.step, self.losses, self.gradients = shards, start, [], {}

    def train(self, steps):
        for _ in range(steps):
            loss_sum, num_tokens = self.model.loss(*batch(self.step))
            (loss_sum / num_tokens.astype("float32")).backward()
            self.mesh.reduce_gradients(self.model.parameters())
            self.gradients = self.gradients or self.whole(lambda parameter: parameter.grad)
            self.norm = self.optimizer.step(1e-2)
            self.losses.append(float(loss_sum) / int(num_tokens))
            self.step += 1
        return self

    def save(self, folder):
        state = {"step": self.step, "data": "", "flags": {}}
        training_state.save(folder, self.model, self.optimizer, {}, state)

    def whole(self, value_of):
        """By name on disk: the parameters, their gradients or moments of all ranks put together."""
        found = {}
        for name, parameter in self.model.named_parameters():
            found |= self.model.table[name].merge(self.shards.all_shards(parameter, value_of(parameter)))
        return found

    def moments(self):
        state = self.optimizer._adamw.state_dict()
        return self.whole(lambda parameter: state[f"{parameter.name}_moment2_0"])


def on_two(run, sequence_parallel=True):
    return run_ranks(2, lambda rank, communicator: run(TensorParallel(communicator, sequence_parallel)))


@pytest.fixture(scope="module")
def alone(tiny_folder):
    return Run(tiny_folder).train(STEPS)


def assert_close(ours, exact):
    """Sums of hundreds of float32 products in another order."""
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


def require_same_training(runs, alone):
    assert runs[0].losses == runs[1].losses  # every rank computes the whole loss
    assert runs[0].norm == runs[1].norm
    np.testing.assert_allclose(runs[0].losses, alone.losses, rtol=1e-5)
    np.testing.assert_allclose(runs[0].norm, alone.norm, rtol=1e-4)
    for run in runs:
        assert_close(run.gradients, alone.gradients)


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
def test_two_ranks_train_as_one(tiny_folder, alone, sequence_parallel):
    fk.ledger().reset()
    runs = on_two(lambda shards: Run(tiny_folder, shards).train(STEPS), sequence_parallel)
    require_same_training(runs, alone)
    expected = {"all_gather_matmul", "matmul_reduce_scatter"} if sequence_parallel else {"matmul_all_reduce"}
    assert {op for op, _, _ in fk.ledger()} & FUSED == expected


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
def test_two_ranks_without_mc2_train_as_one(tiny_folder, alone, without_mc2, sequence_parallel):
    runs = on_two(lambda shards: Run(tiny_folder, shards).train(STEPS), sequence_parallel)
    require_same_training(runs, alone)
    assert not {op for op, _, _ in fk.ledger()} & FUSED


def test_recomputation_changes_no_loss(tiny_folder):
    def both(shards):
        return [Run(tiny_folder, shards, recompute=recompute).train(2).losses for recompute in (False, True)]

    for kept, again in on_two(both):
        assert kept == again


def test_bfloat16_is_as_near_as_one_process(tiny_folder, alone):
    """Losses of three steps: twice what one process in bfloat16 is off."""
    whole = Run(tiny_folder, dtype="bfloat16").train(STEPS).losses
    (ours, _) = on_two(lambda shards: Run(tiny_folder, shards, dtype="bfloat16").train(STEPS).losses)
    error = np.abs(np.subtract(whole, alone.losses)).max()
    assert np.abs(np.subtract(ours, alone.losses)).max() <= 2 * error + 2.0**-8


def test_a_checkpoint_of_two_ranks_goes_on_alone_and_back(tiny_folder, alone, tmp_path):
    def two_steps(shards):
        run = Run(tiny_folder, shards).train(2)
        run.save(tmp_path / "checkpoint-2")
        return run.whole(lambda parameter: parameter), run.moments()

    weights, moments = on_two(two_steps)[0]
    resumed = Run(tmp_path / "checkpoint-2", start=2)
    assert_equal(resumed.whole(lambda parameter: parameter), weights)
    assert_equal(resumed.moments(), moments)
    assert resumed.train(1).losses == pytest.approx(alone.losses[2:], rel=1e-5)
    resumed.save(tmp_path / "checkpoint-3")

    def read_back(shards):
        run = Run(tmp_path / "checkpoint-3", shards, start=3)
        return run.whole(lambda parameter: parameter), run.moments()

    for weights, moments in on_two(read_back):
        assert_equal(weights, resumed.whole(lambda parameter: parameter))
        assert_equal(moments, resumed.moments())


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) == 2 * 9 + 3
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_rank_holds_its_own_heads_and_columns(tiny_folder):
    """tiny: 4 heads of 12, 2 key-value heads, intermediate_size 80."""
    whole = dict(Llama.from_pretrained(tiny_folder).named_parameters())

    def read(shards):
        with one_at_a_time:
            return dict(Llama.from_pretrained(tiny_folder, shards=shards).named_parameters())

    columns = {
        "self_attn.qkv_proj": [*range(24, 48), *range(60, 72), *range(84, 96)],
        "mlp.gate_up_proj": [*range(40, 80), *range(120, 160)],
    }
    second = on_two(read)[1]
    for name, own in columns.items():
        name = f"layers.1.{name}.weight"
        np.testing.assert_array_equal(second[name].numpy(), whole[name].numpy()[:, own])
    for name, rows in (("self_attn.o_proj", 24), ("mlp.down_proj", 40)):
        name = f"layers.1.{name}.weight"
        np.testing.assert_array_equal(second[name].numpy(), whole[name].numpy()[rows:])


@pytest.mark.parametrize("name, count", [("num_key_value_heads", 1), ("intermediate_size", 81)])
def test_what_does_not_divide_is_refused(tiny_folder, name, count):
    config = dataclasses.replace(LlamaConfig.from_json(Path(tiny_folder) / "config.json"), **{name: count})
    with pytest.raises(ValueError, match=f"{name} must be a multiple of the 2 tensor-parallel ranks, got {count}"):
        on_two(lambda shards: Llama(config, shards=shards))
