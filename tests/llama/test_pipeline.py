"""The Llama in stages, also of divided layers and in copies, against the whole one: losses, weights, checkpoints."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from examples.llama2_13b.data.batches import filled
from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.folders import layout
from examples.llama2_13b.folders.adapter_config import AdapterConfig
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.tensor_parallel import is_shard
from examples.llama2_13b.parallel.writers import Writers
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.loss import chunk_of, next_token
from examples.llama2_13b.train.optimizer import AdamW
from fusionkit.parallel import collectives
from tests.llama.conftest import EXAMPLE
from tests.llama.meshes import making_a_model, on_mesh, tensors_of, value_at_first

TINY = LlamaConfig.from_json(EXAMPLE / "configs" / "tiny.json")
STEPS = 10


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A model folder of so many layers."""
    root = tmp_path_factory.mktemp("layers")

    def made(layers, tied=False):
        folder = root / f"{layers}{' tied' * tied}"
        with making_a_model():  # all ranks may ask
            if not folder.exists():
                paddle.seed(layers)
                sizes = {"num_hidden_layers": layers, "initializer_range": 0.1, "tie_word_embeddings": tied}
                Llama(dataclasses.replace(TINY, **sizes)).save_pretrained(folder)
        return folder

    return made


def batches(step, count):
    """Micro-batches of a step: of different lengths, as without packing; the last has a row less."""
    random = np.random.default_rng((step, count))
    for number in range(count):
        rows, length = 1 if number == count - 1 else 2, 16 + 8 * (number % 3)
        ids, labels = random.integers(0, TINY.vocab_size, (2, rows, length))
        labels[0, :5] = -100
        ends = np.full((rows, 1, length, 1), length, np.int32)
        yield Batch(ids, labels, np.tile(np.arange(length), (rows, 1)), ends, [length] * rows)


class Run:
    """A model and its optimizer, or one process's part of them, from a folder or a checkpoint."""

    def __init__(self, folder, mesh, start=0, open_model=Llama.from_pretrained, **arguments):
        with making_a_model(mesh.world):
            how = {"shards": mesh.tensor, "pipeline": mesh.pipeline, "sharding": mesh.sharding}
            self.model = open_model(folder, **how, **arguments)
        self.optimizer = AdamW(self.model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        if start:
            self.optimizer.load(folder, training_state.load(folder).optimizer)
        self.gradients = Gradients(mesh, self.model.parameters()).watch()
        self.mesh, self.step, self.losses, self.norms = mesh, start, [], []

    def work(self, micro_batches):
        shapes = [self.model.handed_on_shape(*batch.input_ids.shape) for batch in micro_batches]
        return chunk_of(self.model, next_token, micro_batches), shapes, self.model.activation_dtype

    def train(self, steps, count):
        for _ in range(steps):
            everything = list(batches(self.step, count))
            own, targets = self.own(everything), sum(batch.num_targets for batch in everything)
            self.gradients.expect(len(own), -(-count // self.mesh.copies))
            total = self.mesh.pipeline.train(*self.work(own), targets / self.mesh.copies)
            self.gradients.reduce()
            self.norms.append(self.optimizer.step(1e-3))
            self.losses.append(self.mesh.totals(total)[0] / targets)
            self.step += 1
        return self

    def own(self, everything):
        """This copy's micro-batches; in stage 3 all copies have as many."""
        own, most = self.mesh.share(everything), -(-len(everything) // self.mesh.copies)
        divides = self.mesh.sharding.divides_parameters
        return list(filled(own, most, self.mesh.tensor.size)) if divides else own

    def evaluate(self):
        self.model.eval()
        found = self.mesh.pipeline.evaluate(*self.work(self.own(list(batches(99, 5)))))
        self.model.train()
        return self.mesh.totals(found)[0]

    def save(self, folder):
        if self.mesh.holds_state:
            state = {"step": self.step, "data": "", "flags": {}}
            training_state.Saving(folder, self.mesh, self.model, self.optimizer, {}, state)
        self.mesh.any_process(False)  # nobody reads before it is there
        return self

    def arrays(self):
        """Own parameters, and moments after the first step, by name; joined over the ranks that divide them.

        What stays with its owner is the first copy's.
        """
        state, found = self.optimizer._adamw.state_dict(), {}
        for name, parameter in self.model.named_parameters():
            moments = {kind: state.get(f"{parameter.name}_{kind}_0") for kind in ("moment1", "moment2")}
            own = value_at_first(self.mesh.sharding, parameter)
            for kind, value in {"value": own, **moments}.items():
                if value is not None:
                    parts = tensors_of(self.model.table[name], self.mesh.tensor, parameter, value)
                    found |= {f"{part} {kind}": array for part, array in parts.items()}
        return found


def joined(runs):
    """The arrays of all stages and owners; each parameter has one stage, and each moment one owner.

    But for a tied embedding, which has the same bits on the first and the last.
    """
    found = {}
    for run in runs:
        if run.mesh.holds_state and run.mesh.tensor.rank == 0:
            news = {name for name in run.whole if run.mesh.copy == 0 or not name.endswith("value")}
            for name in found.keys() & news:
                assert name.startswith("model.embed_tokens.weight") and run.model.config.tie_word_embeddings
                np.testing.assert_array_equal(found[name], run.whole[name], err_msg=name)
            found |= {name: run.whole[name] for name in news}
    return found


def trained(folder, mesh, count, **arguments):
    run = Run(folder, mesh, **arguments).train(STEPS, count)
    run.evaluated, run.whole = run.evaluate(), run.arrays()
    return run


def require_same_training(runs, alone, first):
    """Losses, norms and evaluation on every process, and the weights; `first` are those before the first step."""
    for run in runs:
        np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(run.norms, alone.norms, rtol=1e-5)
        assert run.evaluated == pytest.approx(alone.evaluated, rel=1e-5)
    whole = joined(runs)
    assert whole.keys() == alone.whole.keys()
    moved, apart = (
        np.sqrt(sum(np.sum((other[name] - alone.whole[name]) ** 2) for name in first)) for other in (first, whole)
    )
    assert apart < 1e-3 * moved  # AdamW's first steps take the sign of gradients that may be rounding alone


LAYOUTS = {  # degrees, chunks, layers, micro-batches, recomputation
    "pp2": (Degrees(pipeline=2), 1, 2, 4, None),
    "pp2-uneven": (Degrees(pipeline=2), 1, 5, 3, "full_attn"),
    "pp3-uneven": (Degrees(pipeline=3), 1, 4, 1, None),
    "pp3-odd": (Degrees(pipeline=3), 1, 5, 7, "full"),
    "pp2-interleaved": (Degrees(pipeline=2), 2, 4, 4, "full"),
    "pp2-interleaved-uneven": (Degrees(pipeline=2), 2, 5, 3, None),
    "pp2-tp2": (Degrees(pipeline=2, tensor=2), 1, 3, 3, None),
    "pp2-tp2-recomputed": (Degrees(pipeline=2, tensor=2), 1, 3, 2, "full_attn"),
    "pp2-dp2": (Degrees(pipeline=2, data=2), 1, 3, 5, "core_attn"),
    "pp2-sharding2": (Degrees(pipeline=2, sharding=2), 1, 3, 5, None),
    "pp2-sharding2-interleaved-stage2": (Degrees(pipeline=2, sharding=2), 2, 4, 4, None),
    "pp2-sharding2-stage3": (Degrees(pipeline=2, sharding=2), 1, 3, 3, "full"),
    "pp2-sharding2-interleaved-stage3": (Degrees(pipeline=2, sharding=2), 2, 4, 4, "full_attn"),
    "pp2-dp2-copy-without-rows": (Degrees(pipeline=2, data=2), 1, 3, 1, None),
    "tied-pp3-interleaved": (Degrees(pipeline=3), 2, 6, 4, "core_attn"),
    "tied-pp2-tp2": (Degrees(pipeline=2, tensor=2), 1, 3, 3, None),
    "tied-pp2-sharding2-stage2": (Degrees(pipeline=2, sharding=2), 1, 3, 4, None),
    "tied-pp2-sharding2-stage3": (Degrees(pipeline=2, sharding=2), 1, 3, 1, None),
    "tied-pp2-dp2-copy-without-rows": (Degrees(pipeline=2, data=2), 1, 3, 1, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_stages_train_as_one_process(folder_of, name):
    degrees, chunks, layers, count, recompute = LAYOUTS[name]
    stage = int(name[-1]) if "stage" in name else 1
    folder = folder_of(layers, tied=name.startswith("tied"))
    alone = trained(folder, Mesh(), count, recompute=recompute)
    runs = on_mesh(degrees, lambda mesh: trained(folder, mesh, count, recompute=recompute), stage, chunks)
    require_same_training(runs, alone, Run(folder, Mesh()).arrays())
    if degrees.processes == degrees.pipeline and not alone.model.config.tie_word_embeddings:  # no sum has another order
        assert runs[0].losses == alone.losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_keeps_no_values_of_what_it_hands_on(folder_of, dtype):
    """Of each micro-batch the graph is kept, and the values go when they have been sent."""

    def run(mesh):
        run = Run(folder_of(2), mesh, dtype=dtype)
        forward, shapes, dtype_ = run.work(list(batches(0, 4)))
        outputs, held = [], []

        def watched(*arguments):
            held.append([output._is_initialized() for output in outputs])
            outputs.append(forward(*arguments))
            return outputs[-1]

        mesh.pipeline.train(watched, shapes, dtype_, 1.0)
        return held, [output._is_initialized() for output in outputs]

    (held, ended), last = on_mesh(Degrees(pipeline=2), run)
    assert not any(any(each) for each in held) and ended == 4 * [False]
    assert last[1] == 4 * [True]  # a loss is read


@pytest.mark.parametrize(
    "degrees", [Degrees(data=2, pipeline=2), Degrees(pipeline=2, sharding=2)], ids=["dp", "sharding"]
)
def test_two_stages_keep_one_tied_embedding_if_their_sums_over_copies_differ(folder_of, monkeypatch, degrees):
    """A device's library may round them in another order on each stage: here the last stage's are 1e-6 larger."""
    begin, last = collectives.start_sum, []

    def rounded(x, group, root=None):
        return begin(x * (1 + 1e-6) if group in last else x, group, root)

    def run(mesh):
        if mesh.pipeline.is_last:
            last.extend([mesh.replicas, mesh.sharding.group])
        return Run(folder_of(2, tied=True), mesh).train(2, 4).model.lm_head.weight.numpy()

    monkeypatch.setattr(collectives, "start_sum", rounded)
    one, *others = on_mesh(degrees, run)
    for other in others:
        np.testing.assert_array_equal(other, one)


def test_the_sum_that_is_handed_on_has_the_rounding_of_the_norms(folder_of):
    """In bfloat16 a loss is the same bits, as the next stage's norm reads what the fused one would have computed."""
    alone = Run(folder_of(5), Mesh(), dtype="bfloat16").evaluate()
    for found in on_mesh(Degrees(pipeline=3), lambda mesh: Run(folder_of(5), mesh, dtype="bfloat16").evaluate()):
        assert found == alone


def test_bfloat16_is_as_near_as_one_process(folder_of):
    """Losses of three steps: twice what one process in bfloat16 is off."""

    def losses(mesh, dtype="bfloat16"):
        return Run(folder_of(4), mesh, dtype=dtype).train(3, 3).losses

    exact = losses(Mesh(), "float32")
    error = np.abs(np.subtract(losses(Mesh()), exact)).max()
    for found in on_mesh(Degrees(pipeline=2), losses, chunks=2):
        assert np.abs(np.subtract(found, exact)).max() <= 2 * error + 2.0**-8


def test_an_adapter_in_stages_trains_as_one_process(folder_of, tmp_path):
    def run(mesh):
        found = Run(folder_of(3), mesh, open_model=new_adapter).train(3, 3)
        found.model.save_pretrained(tmp_path / str(mesh.processes))
        return found.losses

    alone = run(Mesh())
    assert on_mesh(Degrees(pipeline=2, tensor=2), run)[0] == pytest.approx(alone, rel=1e-5)
    assert on_mesh(Degrees(pipeline=2), run) == [alone, alone]
    one, two, four = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "124")
    assert one.keys() == two.keys() == four.keys()
    for name, value in one.items():
        assert np.array_equal(two[name], value) and value.any(), name
        np.testing.assert_allclose(four[name], value, rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=name)


def new_adapter(folder, **how):
    return LoraLlama.with_new_adapter(folder, AdapterConfig(rank=4, alpha=8), 7, **how)


def test_ranks_that_own_no_matrix_of_an_adapter_train_with_the_others(folder_of, tmp_path):
    """A stage has two matrices for three ranks of sharding; checkpoints go from there to one process and back."""
    base, config = folder_of(2), AdapterConfig(rank=4, alpha=8, targets=("q_proj",))

    def new(folder, **how):
        return LoraLlama.with_new_adapter(folder, config, 7, **how)

    def run(mesh):
        return Run(base, mesh, open_model=new).train(2, 4).save(tmp_path / str(mesh.processes)).losses

    def resumed(mesh, processes):
        def saved(folder, **how):
            return LoraLlama.with_adapter(base, folder, **how)

        return Run(tmp_path / str(processes), mesh, 2, saved).train(2, 4).losses

    degrees = Degrees(pipeline=2, sharding=3)
    alone, before = run(Mesh()), resumed(Mesh(), 1)
    for first, after in on_mesh(degrees, lambda mesh: (run(mesh), resumed(mesh, 1))):
        assert first == pytest.approx(alone, rel=1e-5) and after == pytest.approx(before, rel=1e-5)
    assert resumed(Mesh(), 6) == pytest.approx(before, rel=1e-5)


def test_a_tied_embedding_is_written_by_one_of_its_stages(folder_of, tmp_path):
    folder = tmp_path / "checkpoint-1"
    on_mesh(Degrees(pipeline=2), lambda mesh: Run(folder_of(3, tied=True), mesh).train(1, 2).save(folder))
    training_state.verify(folder, training_state.load(folder), Writers())  # what two ranks write counts twice


@pytest.mark.parametrize(
    ("degrees", "chunks"),
    [(Degrees(pipeline=2, tensor=2), 1), (Degrees(pipeline=2, sharding=2), 2)],
    ids=["tensor", "interleaved-sharding"],
)
def test_a_checkpoint_of_stages_goes_on_alone_and_back(folder_of, tmp_path, degrees, chunks):
    """From two stages to one process to three stages, moments included, to the last bit."""

    def saved(mesh):
        run = Run(folder_of(4), mesh).train(2, 3).save(tmp_path / "checkpoint-2")
        run.whole = run.arrays()
        return run

    first = on_mesh(degrees, saved, chunks=chunks)
    folder = tmp_path / "checkpoint-2"
    training_state.verify(folder, training_state.load(folder), Writers())  # what two ranks write counts twice
    alone = Run(folder, Mesh(), start=2)
    assert_equal(alone.arrays(), joined(first))
    alone.train(1, 3).save(tmp_path / "checkpoint-3")
    second = alone.arrays()
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, value in joined(first).items():
        if name.endswith(" value"):
            np.testing.assert_array_equal(theirs[name.removesuffix(" value")].numpy(), value, err_msg=name)
    Run(tmp_path / "checkpoint-2", Mesh(), start=2).save(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():  # the state, with the checksums of the others, too
        assert path.read_bytes() == (tmp_path / "checkpoint-2" / path.name).read_bytes(), path.name

    def read(mesh):
        run = Run(tmp_path / "checkpoint-3", mesh, start=3)
        run.whole = run.arrays()
        return run.train(1, 3)

    three = on_mesh(Degrees(pipeline=3), read)
    assert_equal(joined(three), second)
    assert three[0].losses == alone.train(1, 3).losses[1:]


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) == 3 * (4 * 9 + 3)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_stage_has_its_own_layers_alone(folder_of):
    """Five layers in three stages: the last, which has the head, has one less."""

    def names(mesh):
        return [name for name, _ in Run(folder_of(5), mesh).model.named_parameters()]

    found = on_mesh(Degrees(pipeline=3), names)
    assert [name for name in found[0] if not name.startswith("layers.")] == ["embed_tokens.weight"]
    assert [name for name in found[1] if not name.startswith("layers.")] == []
    assert [name for name in found[2] if not name.startswith("layers.")] == ["norm.weight", "lm_head.weight"]
    numbers = [{name.split(".")[1] for name in stage if name.startswith("layers.")} for stage in found]
    assert numbers == [{"0", "1"}, {"2", "3"}, {"4"}]
    table = layout.layout(dataclasses.replace(TINY, num_hidden_layers=5))
    assert sorted(sum(found, [])) == sorted(table)


def test_more_chunks_than_layers_are_refused(folder_of):
    rule = "Llama: num_hidden_layers must be at least 4, one for each of 2 chunks of 2 stages, got 3. The nearest is "
    with pytest.raises(ValueError, match=f"{rule}--pipeline_parallel_degree 2 --virtual_pp_degree 1"):
        on_mesh(Degrees(pipeline=2), lambda mesh: Run(folder_of(3), mesh), chunks=2)


@pytest.mark.parametrize(
    "stages, chunks, layers, nearest", [(4, 1, 3, (2, 1)), (4, 3, 9, (4, 2)), (3, 2, 2, (1, 1)), (8, 4, 6, (4, 1))]
)
def test_the_nearest_stages_and_chunks_have_a_layer_each(stages, chunks, layers, nearest):
    group = SimpleNamespace(world_size=stages, rank=0)
    words = "--pipeline_parallel_degree {} --virtual_pp_degree {}$".format(*nearest)
    with pytest.raises(ValueError, match=words):
        PipelineParallel(group, chunks).layers(layers)
    PipelineParallel(SimpleNamespace(world_size=nearest[0], rank=0), nearest[1]).layers(layers)


def test_a_stage_that_ends_ends_the_others(folder_of):
    texts = {}

    def run(mesh):
        try:
            trainer = Run(folder_of(4), mesh).train(1, 3)
            if mesh.pipeline.stage == 2:
                mesh.pipeline.group.close()
            trainer.train(1, 3)
        except RuntimeError as error:
            texts[mesh.pipeline.stage] = str(error)
            mesh.pipeline.group.close()

    on_mesh(Degrees(pipeline=3), run)
    assert set(texts) == {0, 1, 2}
    assert "rank 2 must answer" in texts[1] and "has left" in texts[1], texts


@pytest.mark.parametrize(
    "degrees", [Degrees(pipeline=2, tensor=2), Degrees(pipeline=2, sharding=2)], ids=["pp2-tp2", "pp2-sharding2"]
)
def test_gradients_are_clipped_by_the_norm_of_all_ranks(folder_of, degrees):
    """First moments after a step are 1 - beta1 of the clipped gradients, whose norm is the limit. Parameters hide how
    much a rank scales its gradients: Adam divides by them."""

    def squares(mesh):
        run = Run(folder_of(2), mesh)
        run.optimizer = AdamW(run.model, mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=0.01)
        assert run.train(1, 2).norms[0] > 0.01
        own, moments = run.optimizer.own(), run.optimizer.moments("moment1")
        counted = [name for name, one in own.items() if mesh.tensor.rank == 0 or is_shard(one)]
        return sum(float((moments[name] ** 2).sum()) for name in counted)

    assert np.sqrt(sum(on_mesh(degrees, squares))) == pytest.approx((1 - 0.9) * 0.01, rel=1e-4)
