"""The Llama divided over ranks against the whole one: losses, gradients, checkpoints of one layout read on another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import paddle
import pytest

import fusionkit as fk
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.optimizer import AdamW
from fusionkit import policy
from fusionkit.parallel.parity import run_ranks
from tests.llama.meshes import making_a_model, tensors_of

STEPS = 3
FUSED = {"all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce"}


@pytest.fixture
def without_mc2(monkeypatch):
    monkeypatch.setattr(policy, "mc2", lambda: False)


def edges(vocab_size):
    """The first and the last entry of each of two and of four ranks."""
    return [shard[end] for ranks in (2, 4) for shard in np.array_split(np.arange(vocab_size), ranks) for end in (0, -1)]


def batch(step, vocab_size):
    random = np.random.default_rng(step)
    ids, labels = random.integers(0, vocab_size, (2, 2, 36 - 2 * (step % 2)))
    ids[1, 20:32] = labels[1, :12] = edges(vocab_size)
    labels[0, :5] = -100
    ends = np.full((2, 1, ids.shape[1], 1), ids.shape[1], np.int32)
    ends[0, 0, :10] = 10  # two documents in a row
    positions = np.tile(np.arange(ids.shape[1]), (2, 1))
    return map(paddle.to_tensor, (ids, labels, positions, ends))


class Run:
    """A model and its optimizer on one rank, from a folder or a checkpoint."""

    def __init__(self, folder, shards=ALONE, start=0, **arguments):
        with making_a_model(shards.group):
            self.model = Llama.from_pretrained(folder, shards=shards, **arguments)
        self.mesh = Mesh(tensor=shards)
        self.optimizer = AdamW(self.model, self.mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        if start:
            self.optimizer.load(folder, training_state.load(folder).optimizer)
        self.shards, self.step, self.losses, self.gradients = shards, start, [], {}

    def train(self, steps):
        for _ in range(steps):
            loss_sum, num_tokens = self.model.loss(*batch(self.step, self.model.config.vocab_size))
            (loss_sum / num_tokens.astype("float32")).backward()
            Gradients(self.mesh, self.model.parameters()).reduce()
            self.gradients = self.gradients or self.whole(lambda parameter: parameter.grad)
            self.norm = self.optimizer.step(1e-2)
            self.losses.append(float(loss_sum) / int(num_tokens))
            self.step += 1
        return self

    def save(self, folder):
        state = {"step": self.step, "data": "", "flags": {}}
        training_state.Saving(folder, self.mesh, self.model, self.optimizer, {}, state)

    def whole(self, value_of):
        """By name on disk: the parameters, their gradients or moments of all ranks put together."""
        found = {}
        for name, parameter in self.model.named_parameters():
            found |= tensors_of(self.model.table[name], self.shards, parameter, value_of(parameter))
        return found

    def moments(self):
        state = self.optimizer._adamw.state_dict()
        return self.whole(lambda parameter: state[f"{parameter.name}_moment2_0"])


def on_ranks(count, run, sequence_parallel=True):
    return run_ranks(count, lambda rank, communicator: run(TensorParallel(communicator, sequence_parallel)))


def on_two(run, sequence_parallel=True):
    return on_ranks(2, run, sequence_parallel)


@pytest.fixture(scope="module")
def alone(tiny_folder):
    return Run(tiny_folder).train(STEPS)


@pytest.fixture(scope="module")
def uneven_folder(tiny_folder, tmp_path_factory):
    """509 entries: 255 and 254 on two ranks, 128 and three times 127 on four, which divide the four heads too."""
    config = LlamaConfig.from_json(Path(tiny_folder) / "config.json")
    folder = tmp_path_factory.mktemp("uneven")
    paddle.seed(3)
    Llama(dataclasses.replace(config, vocab_size=509, num_key_value_heads=4)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def uneven_alone(uneven_folder):
    return Run(uneven_folder).train(STEPS)


@pytest.fixture(scope="module")
def tied_folder(uneven_folder, tmp_path_factory):
    config = LlamaConfig.from_json(uneven_folder / "config.json")
    folder = tmp_path_factory.mktemp("tied")
    paddle.seed(4)
    Llama(dataclasses.replace(config, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied_alone(tied_folder):
    return Run(tied_folder).train(STEPS)


def assert_close(ours, exact):
    """Sums of hundreds of float32 products in another order."""
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


def require_same_training(runs, alone):
    assert all(run.losses == runs[0].losses and run.norm == runs[0].norm for run in runs)  # each has the whole loss
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


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["uneven", "tied"])
def test_a_vocabulary_that_does_not_divide_trains_as_one(request, kind, ranks, sequence_parallel):
    folder, alone = (request.getfixturevalue(f"{kind}_{name}") for name in ("folder", "alone"))

    def trained(shards):
        run = Run(folder, shards).train(STEPS)
        return run, run.whole(lambda parameter: parameter)

    fk.ledger().reset()
    runs, weights = zip(*on_ranks(ranks, trained, sequence_parallel), strict=True)
    assert {backend for op, backend, _ in fk.ledger() if op == "fused_linear_cross_entropy"} == {"cpu"}
    require_same_training(runs, alone)
    first, expected = (run.whole(lambda parameter: parameter) for run in (Run(folder), alone))
    for name, value in expected.items():
        moved, apart = (np.linalg.norm(other[name] - value) for other in (first, weights[0]))
        assert apart < 1e-2 * moved, name  # AdamW's first steps take the sign of gradients that may be rounding alone


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_rank_has_the_logits_of_the_whole_vocabulary(uneven_folder, dtype, ranks, sequence_parallel):
    """And what is computed of them, alike on all ranks, has the gradients of one process."""

    def both(shards=ALONE, dtype=dtype):
        run = Run(uneven_folder, shards, dtype=dtype)
        ids, _, positions, ends = batch(0, 509)
        logits = run.model(ids, positions, ends)
        logits.logsumexp(-1).sum().backward()
        Gradients(run.mesh, run.model.parameters()).reduce()
        return logits.numpy(), run.whole(lambda parameter: parameter.grad)

    exact, exact_gradients = both(dtype="float32")
    assert exact.shape == (2, 36, 509)
    if dtype == "float32":
        for logits, gradients in on_ranks(ranks, both, sequence_parallel):
            np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
            assert_close(gradients, exact_gradients)
        return
    error = np.abs(both()[0] - exact).max()  # of one process in bfloat16
    for logits, _ in on_ranks(ranks, both, sequence_parallel):
        assert np.abs(logits - exact).max() <= 2 * error + 2.0**-8 * np.abs(exact).max()


def test_without_a_gradient_the_loss_is_the_same(uneven_folder, uneven_alone):
    def evaluated(shards):
        with paddle.no_grad():
            loss_sum, num_tokens = Run(uneven_folder, shards).model.loss(*batch(0, 509))
        return float(loss_sum) / int(num_tokens)

    assert on_two(evaluated) == pytest.approx([uneven_alone.losses[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("outside", [-1, 509, 2**40])
def test_an_id_that_no_rank_has_is_refused_by_all(uneven_folder, outside):
    def refused(shards):
        run = Run(uneven_folder, shards)
        with pytest.raises(ValueError, match=rf"x must be in \[0, 509\), got {outside}"):
            run.model(paddle.to_tensor([[3, outside]]))

    on_two(refused)


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "tensor"])
def test_recomputation_changes_no_loss_and_no_gradient(tiny_folder, sequence_parallel):
    def trained(recompute):
        return on_two(lambda shards: Run(tiny_folder, shards, recompute=recompute).train(2), sequence_parallel)

    whole = trained(None)
    for recompute in GRANULARITIES:
        for kept, again in zip(whole, trained(recompute), strict=True):
            assert kept.losses == again.losses
            assert kept.gradients.keys() == again.gradients.keys()
            for name, gradient in kept.gradients.items():
                np.testing.assert_array_equal(again.gradients[name], gradient, err_msg=name)


def test_bfloat16_is_as_near_as_one_process(tiny_folder, alone):
    """Losses of three steps: twice what one process in bfloat16 is off."""
    whole = Run(tiny_folder, dtype="bfloat16").train(STEPS).losses
    (ours, _) = on_two(lambda shards: Run(tiny_folder, shards, dtype="bfloat16").train(STEPS).losses)
    error = np.abs(np.subtract(whole, alone.losses)).max()
    assert np.abs(np.subtract(ours, alone.losses)).max() <= 2 * error + 2.0**-8


@pytest.mark.parametrize("kind", ["uneven", "tied"])
def test_a_checkpoint_of_two_ranks_goes_on_alone_and_on_four(request, kind, tmp_path):
    folder, alone = (request.getfixturevalue(f"{kind}_{name}") for name in ("folder", "alone"))

    def two_steps(shards):
        run = Run(folder, shards).train(2)
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

    for weights, moments in on_ranks(4, read_back):
        assert_equal(weights, resumed.whole(lambda parameter: parameter))
        assert_equal(moments, resumed.moments())


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) == 2 * 9 + (3 if "lm_head.weight" in one else 2)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_rank_holds_its_own_entries_of_the_vocabulary(uneven_folder):
    whole = dict(Llama.from_pretrained(uneven_folder).named_parameters())

    def read(shards):
        with making_a_model():
            return dict(Llama.from_pretrained(uneven_folder, shards=shards).named_parameters())

    for own, shard in zip(np.array_split(np.arange(509), 4), on_ranks(4, read), strict=True):
        np.testing.assert_array_equal(shard["embed_tokens.weight"], whole["embed_tokens.weight"].numpy()[own])
        np.testing.assert_array_equal(shard["lm_head.weight"], whole["lm_head.weight"].numpy()[:, own])


def test_a_rank_holds_its_own_heads_and_columns(tiny_folder):
    """tiny: 4 heads of 12, 2 key-value heads, intermediate_size 80."""
    whole = dict(Llama.from_pretrained(tiny_folder).named_parameters())

    def read(shards):
        with making_a_model():
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
    rule = f"{name} must be a multiple of the 2 tensor-parallel ranks, got {count}. The nearest degree is 1"
    with pytest.raises(ValueError, match=rule):
        on_two(lambda shards: Llama(config, shards=shards))


@pytest.mark.parametrize(
    "ranks, heads, key_value_heads, inner, name, nearest",
    [
        (4, 6, 2, 80, "num_attention_heads must be a multiple of the 4 tensor-parallel ranks, got 6", 2),
        (4, 8, 2, 81, "num_key_value_heads must be a multiple of the 4 tensor-parallel ranks, got 2", 1),
        (4, 8, 4, 82, "intermediate_size must be a multiple of the 4 tensor-parallel ranks, got 82", 2),
        (3, 8, 8, 80, "num_attention_heads must be a multiple of the 3 tensor-parallel ranks, got 8", 1),
    ],
)
def test_the_nearest_degree_divides_every_count_and_the_processes(
    tiny_folder, ranks, heads, key_value_heads, inner, name, nearest
):
    """4 processes make two copies of 2 ranks, and 3 none: there 2 ranks would be the nearest by the count alone."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_value_heads, "intermediate_size": inner}
    config = dataclasses.replace(LlamaConfig.from_json(Path(tiny_folder) / "config.json"), **sizes)
    with pytest.raises(ValueError, match=f"{name}. The nearest degree is {nearest}"):
        on_ranks(ranks, lambda shards: Llama(config, shards=shards))
    for shards in on_ranks(nearest, lambda shards: shards):
        with making_a_model():
            Llama(config, shards=shards)
