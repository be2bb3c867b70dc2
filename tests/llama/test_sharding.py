"""Copies of the Llama that divide the optimizer's work, also with data and tensor parallelism, against one process."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import paddle
import pytest

from examples.llama2_13b.data.batches import filled
from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.parallel import gradients
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.sharding import owners
from examples.llama2_13b.parallel.trace import COMMUNICATION, EXPOSED
from examples.llama2_13b.parallel.writers import Writers
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.loss import next_token
from examples.llama2_13b.train.optimizer import AdamW
from tests.llama.meshes import making_a_model, on_mesh, tensors_of, value_at_first

STEPS = 10
# Degrees and the stage of sharding.
LAYOUTS = {
    "data2": (Degrees(data=2), 1),
    "sharding2": (Degrees(sharding=2), 1),
    "sharding3": (Degrees(sharding=3), 1),
    "data2-sharding2": (Degrees(data=2, sharding=2), 1),
    "sharding2-tensor2": (Degrees(sharding=2, tensor=2), 1),
    "stage2-sharding3": (Degrees(sharding=3), 2),
    "stage2-data2-sharding2": (Degrees(data=2, sharding=2), 2),
    "stage2-sharding2-tensor2": (Degrees(sharding=2, tensor=2), 2),
    "stage3-sharding2": (Degrees(sharding=2), 3),
    "stage3-sharding3": (Degrees(sharding=3), 3),
    "stage3-data2-sharding2": (Degrees(data=2, sharding=2), 3),
    "stage3-sharding2-tensor2": (Degrees(sharding=2, tensor=2), 3),
}


@pytest.fixture(autouse=True)
def many_buckets(monkeypatch):
    """tiny has 15 parameters of 48 to 24576 elements."""
    monkeypatch.setattr(gradients, "BUCKET_ELEMENTS", 5000)


def rows(step):
    """Five or six, one of two documents; the last step has one."""
    random = np.random.default_rng(step)
    ids, labels = random.integers(0, 512, (2, 6, 34))
    labels[0, :5] = -100
    ends = np.full((6, 1, 34, 1), 34, np.int32)
    ends[0, 0, :10] = 10
    count = 1 if step == STEPS - 1 else 5 + step % 2
    return [array[:count] for array in (ids, labels, np.tile(np.arange(34), (6, 1)), ends)]


class Run:
    """A model and its optimizer on one rank, from a folder or a checkpoint."""

    open_model = staticmethod(Llama.from_pretrained)

    def __init__(self, folder, mesh, start=0, **arguments):
        with making_a_model(mesh.world):
            self.model = self.open_model(folder, shards=mesh.tensor, sharding=mesh.sharding, **arguments)
        self.mesh, self.step, self.losses, self.norms = mesh, start, [], []
        self.sent, self.held = [], []  # buckets by the end of backward; elements of gradients after each micro-batch
        self.gradients = Gradients(mesh, self.model.parameters()).watch()
        self.optimizer = AdamW(self.model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        if start:
            self.optimizer.load(folder, training_state.load(folder).optimizer)

    def train(self, steps):
        for _ in range(steps):
            arrays = rows(self.step)
            own = [self.mesh.share(list(array)) for array in arrays]
            starts = range(0, len(own[0]), 2)
            batches = [Batch(*(np.stack(each[start : start + 2]) for each in own), []) for start in starts]
            targets, total = int((arrays[1] != -100).sum()), 0.0
            most = math.ceil(len(arrays[0]) / (2 * self.mesh.copies))
            if self.mesh.sharding.divides_parameters:
                batches = list(filled(batches, most, self.mesh.tensor.size))
            self.gradients.expect(len(batches), most)
            for batch in batches:
                loss_sum = next_token(self.model, batch, None)
                (loss_sum / (targets / self.mesh.copies)).backward()
                total += float(loss_sum)
                self.held.append(sum(x.size for x in self.model.parameters() if x.grad is not None))
            self.sent.append((len(batches), self.gradients._sent))
            self.gradients.reduce()
            self.norms.append(self.optimizer.step(1e-3))
            self.losses.append(self.mesh.totals(total)[0] / targets)
            self.step += 1
        return self

    def save(self, folder):
        if self.mesh.holds_state:
            state = {"step": self.step, "data": "", "flags": {}}
            training_state.Saving(folder, self.mesh, self.model, self.optimizer, {}, state)
        self.mesh.any_process(False)
        return self

    def weights(self):
        """By name on disk, of all tensor ranks put together; what stays with its owner is on the first rank alone."""
        found = {}
        for name, parameter in self.model.named_parameters():
            value = value_at_first(self.mesh.sharding, parameter)
            if value is not None:
                found |= tensors_of(self.model.table[name], self.mesh.tensor, parameter, value)
        return found

    def held_parameters(self):
        """Their names and elements, of those whose memory is here."""
        parameters = self.model.named_parameters()
        return {name: parameter.size for name, parameter in parameters if parameter._is_initialized()}

    def moments(self):
        """Of this rank's own parameters, by their names in the model."""
        state, table = self.optimizer._adamw.state_dict(), dict(self.model.named_parameters())
        found = {name: state.get(f"{parameter.name}_moment2_0") for name, parameter in table.items()}
        return {name: moment.numpy() for name, moment in found.items() if moment is not None}


@pytest.fixture(scope="module")
def alone(tiny_folder):
    run = Run(tiny_folder, Mesh())
    first = run.weights()
    return run.train(STEPS), first


@pytest.fixture(scope="module")
def tied_folder(tiny_folder, tmp_path_factory):
    """513 entries of the vocabulary, which two ranks divide unevenly."""
    config = LlamaConfig.from_json(tiny_folder / "config.json")
    folder = tmp_path_factory.mktemp("tied")
    paddle.seed(5)
    Llama(dataclasses.replace(config, vocab_size=513, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied_alone(tied_folder):
    run = Run(tied_folder, Mesh())
    first = run.weights()
    return run.train(STEPS), first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_as_one_process(tiny_folder, alone, layout):
    """In the last step all copies but one have no row, and no gradient."""
    require_same_training(layout, tiny_folder, alone)


@pytest.mark.parametrize("layout", ["data2", "stage2-sharding2-tensor2", "stage3-sharding2-tensor2"])
def test_a_tied_embedding_trains_as_in_one_process(tied_folder, tied_alone, layout):
    """Its gradient leaves when both uses have added to it."""
    require_same_training(layout, tied_folder, tied_alone)


def require_same_training(layout, folder, alone):
    degrees, stage = LAYOUTS[layout]
    runs = on_mesh(degrees, lambda mesh: (run := Run(folder, mesh).train(STEPS), run.weights()), stage)
    alone, first = alone
    expected = alone.weights()
    moved = np.sqrt(sum(np.sum((first[name] - value) ** 2) for name, value in expected.items()))
    for run, weights in runs:
        assert (run.losses, run.norms) == (runs[0][0].losses, runs[0][0].norms)
        np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(run.norms, alone.norms, rtol=1e-4)
        assert weights.keys() == expected.keys() or run.mesh.sharding.divides_parameters
        for name, value in weights.items():
            np.testing.assert_array_equal(value, runs[0][1][name], err_msg=name)
    apart = np.sqrt(sum(np.sum((runs[0][1][name] - value) ** 2) for name, value in expected.items()))
    assert apart < 1e-3 * moved  # AdamW's first steps take the sign of gradients that may be rounding alone


def test_the_moments_are_divided(tiny_folder, alone):
    """Every parameter's moments are on one rank of three, and no rank has more than a third and one parameter."""
    runs = on_mesh(Degrees(sharding=3), lambda mesh: Run(tiny_folder, mesh).train(1))
    whole = {name: parameter.size for name, parameter in runs[0].model.named_parameters()}
    held = [run.moments() for run in runs]
    assert sorted(name for moments in held for name in moments) == sorted(whole)
    for moments in held:
        assert moments and sum(moment.size for moment in moments.values()) <= sum(whole.values()) / 3 + max(
            whole.values()
        )
    for run in runs:
        assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.parametrize("recompute", [None, *GRANULARITIES])
@pytest.mark.parametrize("layout", ["data2", "sharding2", "stage2-sharding3", "stage3-sharding3"])
def test_gradients_leave_while_backward_computes(tiny_folder, layout, recompute):
    """All but nothing is left to send when it ends: once a step, or in stage 2 with every micro-batch, of which some
    copies have fewer."""
    degrees, stage = LAYOUTS[layout]
    runs = on_mesh(degrees, lambda mesh: Run(tiny_folder, mesh, recompute=recompute).train(2), stage)
    for run in runs:
        buckets = len(run.gradients._early)
        assert buckets >= 5 and run.sent == [
            (passes, buckets * (passes if stage >= 2 else 1)) for passes, _ in run.sent
        ]
        whole = sum(parameter.size for parameter in run.model.parameters())
        # Stage 2 keeps nothing of a micro-batch but sums; else all gradients are there until the last one.
        assert set(run.held) <= ({0} if stage >= 2 else {0, whole}) and 0 in run.held


@pytest.mark.parametrize("recompute", [None, *GRANULARITIES])
def test_the_matrices_are_divided(tiny_folder, alone, recompute):
    """Between steps each is on one rank of three, and no rank has more than its part; while a step computes a rank has
    no more than two layers' beside."""
    most = []

    def watched(mesh):
        run = Run(tiny_folder, mesh, recompute=recompute)
        before, peak = run.held_parameters(), 0
        for layer in run.model.sublayers():

            def watch(*_):
                nonlocal peak
                peak = max(peak, sum(run.held_parameters().values()))

            layer.register_forward_post_hook(watch)
        run.train(2)
        most.append((peak, sum(before.values())))
        return run, before

    runs = on_mesh(Degrees(sharding=3), watched, stage=3)
    whole = {name: parameter.size for name, parameter in runs[0][0].model.named_parameters()}
    norms = {name for name in whole if name.endswith("norm.weight")}
    for run, before in runs:
        assert run.held_parameters() == before and norms < before.keys()
        assert sum(before.values()) <= sum(whole.values()) / 3 + max(whole.values())
    assert sorted(name for _, before in runs for name in before.keys() - norms) == sorted(whole.keys() - norms)
    a_layer = sum(size for name, size in whole.items() if name.startswith("layers.0."))
    for peak, own in most:
        assert own < peak <= own + a_layer + max(whole.values())  # the embedding or the head is larger than a layer
    assert runs[0][0].losses == pytest.approx(alone[0].losses[:2], rel=1e-5)


@pytest.mark.parametrize("recompute", [None, "full"])
def test_the_trace_tells_how_long_layers_wait_for_matrices(tiny_folder, recompute):
    """One wait for each layer that computes, within the time in which its matrices travel."""

    def traced(mesh):
        run = Run(tiny_folder, mesh, recompute=recompute)
        run.model.traced_by(mesh.trace)
        mesh.trace.begin()
        passes, _ = run.train(1).sent[0]
        return passes, run.model.config.num_hidden_layers, mesh.trace.end()

    for passes, layers, events in on_mesh(Degrees(sharding=2), traced, stage=3):
        waits = [event for event in events if (event.lane, event.name) == (EXPOSED, "wait for matrices")]
        travels = [event for event in events if (event.lane, event.name) == (COMMUNICATION, "matrices")]
        turns = {(wait.start, wait.end) for wait in waits}
        # Forward: embedding, layers, head. Backward: head and layers; all outputs of a turn tell of it.
        assert len(turns) >= passes * (layers + 2 + layers + 1)
        # Backward head and last layer are still there, and forward the first layer, but for the first pass.
        assert len(travels) == passes * (layers + 2 + layers - 2) + 1
        assert all(event.start <= event.end for event in travels)


@pytest.mark.parametrize("layout", ["stage2-data2-sharding2", "sharding2-tensor2", "stage3-data2-sharding2"])
def test_a_checkpoint_goes_on_in_another_layout(tiny_folder, alone, tmp_path, layout):
    degrees, stage = LAYOUTS[layout]
    saved = on_mesh(degrees, lambda mesh: Run(tiny_folder, mesh).train(5).save(tmp_path / "checkpoint-5"), stage)
    folder = tmp_path / "checkpoint-5"
    training_state.verify(folder, training_state.load(folder), Writers())  # what two ranks write counts twice
    resumed = Run(folder, Mesh(), start=5)
    whole = resumed.moments()
    if degrees.tensor == 1:  # others hold a part of a tensor
        for run in saved:
            assert 0 < len(run.moments()) < len(whole)
            for name, moment in run.moments().items():
                np.testing.assert_array_equal(moment, whole[name], err_msg=name)
    assert resumed.train(5).losses == pytest.approx(alone[0].losses[5:], rel=1e-5)
    before = Run(tmp_path / "checkpoint-5", Mesh(), start=5).save(tmp_path / "again")

    def read(mesh):
        return Run(tmp_path / "again", mesh, start=5).moments()

    for moments in on_mesh(Degrees(sharding=4), read):
        for name, moment in moments.items():
            np.testing.assert_array_equal(moment, before.moments()[name], err_msg=name)
    for moment in ("moment1", "moment2", "model"):
        one, other = (sorted((tmp_path / name).glob(f"{moment}*.safetensors")) for name in ("checkpoint-5", "again"))
        assert one and [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


@pytest.mark.parametrize("degrees", [Degrees(sharding=3, tensor=2), Degrees(sharding=2, tensor=2)], ids=["3x2", "2x2"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_ranks_that_divide_a_parameter_choose_one_owner(tiny_folder, degrees, tied):
    """Of 513 entries of the vocabulary one rank has 257 and the other 256: each alone might choose others."""
    config = dataclasses.replace(
        LlamaConfig.from_json(tiny_folder / "config.json"),
        vocab_size=513, intermediate_size=128, num_key_value_heads=4, tie_word_embeddings=tied,
    )  # fmt: skip

    def choose(mesh):
        with making_a_model():
            parameters = Llama(config, shards=mesh.tensor).parameters()
        return [parameter.size for parameter in parameters], mesh.sharding.owners(parameters)

    found = on_mesh(degrees, choose)
    assert found[0][0] != found[1][0]
    assert all(owners == found[0][1] for _, owners in found)


def test_the_two_stages_of_a_tied_embedding_choose_one_owner(tied_folder):
    """Also where it is not the largest of a stage's parameters."""
    config = dataclasses.replace(LlamaConfig.from_json(tied_folder / "config.json"), num_hidden_layers=3)

    def choose(mesh):
        with making_a_model():
            model = Llama(dataclasses.replace(config, intermediate_size=600), pipeline=mesh.pipeline)
        found = dict(zip(dict(model.named_parameters()), mesh.sharding.owners(model.parameters()), strict=True))
        return mesh.pipeline.stage, found["lm_head.weight"]

    assert sorted(on_mesh(Degrees(pipeline=2, sharding=2), choose)) == [(0, 0), (0, 0), (1, 0), (1, 0)]


def test_a_parameter_goes_to_the_rank_that_has_least():
    assert owners([4, 9, 1, 5, 1], 2) == [1, 0, 0, 1, 1]
    assert owners([4, 9, 1, 5, 1], 2, first=[2]) == [0, 1, 0, 0, 1]
    assert owners([3, 3], 4) == [0, 1]
    sizes = np.random.default_rng(0).integers(1, 1000, 50).tolist()
    for ranks in (1, 2, 7):
        found = owners(sizes, ranks)
        loads = [sum(size for size, owner in zip(sizes, found, strict=True) if owner == rank) for rank in range(ranks)]
        assert max(loads) <= sum(sizes) / ranks + max(sizes)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_have_some_of_each_layer(ranks):
    """In stage 3 a layer's matrices come from their owners: from one alone they would take all of its link's time."""
    layer = {"qkv": 78_643_200, "o": 26_214_400, "gate_up": 141_557_760, "down": 70_778_880}  # of Llama 2 13B
    found = owners([*layer.values()] * 40, ranks)
    parts = [sorted(owned_elements(layer, found[4 * k : 4 * k + 4], ranks)) for k in range(40)]
    largest = sum(part[-1] for part in parts) / 40
    assert largest <= {2: 0.55, 4: 0.46}[ranks] * sum(layer.values())


def owned_elements(layer, found, ranks):
    owned = [0] * ranks
    for size, owner in zip(layer.values(), found, strict=True):
        owned[owner] += size
    return owned
